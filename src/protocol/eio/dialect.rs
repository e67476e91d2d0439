//! Which of its languages a session speaks.

/// A revision of the Engine.IO protocol.
///
/// ```
/// use sockring::protocol::eio::Revision;
///
/// assert_eq!(Revision::of_query(Some("4")), Revision::V4);
/// assert_eq!(Revision::of_query(None).number(), 3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Revision {
    /// Revision 3: clients of Socket.IO v2, and older ones.
    V3,
    /// Revision 4: clients of Socket.IO v3 and v4.
    #[default]
    V4,
}

impl Revision {
    /// What a client means by the `EIO` of its query. Before revision 4 nobody was made to say one, so all
    /// but `4` is the third.
    #[must_use]
    pub fn of_query(eio: Option<&str>) -> Self {
        if eio == Some("4") { Self::V4 } else { Self::V3 }
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }
}

/// How packets are written for one client.
///
/// ```
/// use sockring::protocol::eio::Dialect;
///
/// assert!(!Dialect::default().base64);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Dialect {
    /// The revision of the protocol.
    pub revision: Revision,
    /// The client cannot take binary (`b64` in its query): it gets base64 everywhere.
    pub base64: bool,
}
