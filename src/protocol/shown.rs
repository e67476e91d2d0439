//! Texts of peers in lines of the log.

use std::fmt;

/// A text that a peer may have chosen, for a line of the log: in quotes, escaped, and cut. A peer must not be
/// able to begin a line of its own, to move the cursor of a terminal, or to fill a disk.
///
/// Costs nothing until it is written.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

/// Bytes of a text that are shown. Long enough for every name and error that is meant to be read.
const SHOWN_BYTES: usize = 200;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.floor_char_boundary(SHOWN_BYTES)];
        write!(f, "{shown:?}")?;
        if shown.len() < self.0.len() {
            write!(f, " and {} bytes more", self.0.len() - shown.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_quoted_and_cut() {
        assert_eq!(Shown("say").to_string(), r#""say""#);
        assert_eq!(Shown("a\nb\u{1b}[2J\"\0\u{202e}").to_string(), r#""a\nb\u{1b}[2J\"\0\u{202e}""#);
        let long = "é".repeat(1000);
        assert_eq!(Shown(&long).to_string(), format!("\"{}\" and 1800 bytes more", "é".repeat(100)));
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_line(text in any::<String>()) {
            let shown = Shown(&text).to_string();
            prop_assert!(shown.chars().all(|c| !c.is_control()), "{}", shown);
            prop_assert!(shown.len() < 10 * SHOWN_BYTES + 40);
        }
    }
}
