//! Records of TLS 1.3 as a hostile client makes them: a part of a message as a whole record.

use std::sync::{Arc, Mutex};

use ring::{aead, hkdf};

use super::rustls::crypto::CryptoProvider;
use super::rustls::crypto::ring::{cipher_suite, default_provider};
use super::rustls::{ClientConfig, KeyLog, RootCertStore, version};

/// Content types of records (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// A message that has the peer change its keys (RFC 8446 section 4.6.3).
pub(crate) const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What a client says of its secrets.
#[derive(Debug, Default)]
pub(crate) struct Secrets(Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().push((label.to_owned(), secret.to_owned()));
    }
}

/// A client with one cipher suite, which is known here, and its secrets.
pub(crate) fn config(roots: RootCertStore) -> (ClientConfig, Arc<Secrets>) {
    let suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = CryptoProvider { cipher_suites: suites, ..default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&version::TLS13]).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    let secrets = Arc::new(Secrets::default());
    config.key_log = secrets.clone();
    (config, secrets)
}

impl Secrets {
    /// What protects the client's handshake messages.
    pub(crate) fn handshake(&self) -> Keys {
        self.keys("CLIENT_HANDSHAKE_TRAFFIC_SECRET")
    }

    /// What protects all that comes afterwards.
    pub(crate) fn traffic(&self) -> Keys {
        self.keys("CLIENT_TRAFFIC_SECRET_0")
    }

    fn keys(&self, label: &str) -> Keys {
        let secrets = self.0.lock().unwrap();
        let (_, secret) = secrets.iter().find(|(known, _)| known == label).unwrap();
        let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
        let key = aead::UnboundKey::new(&aead::AES_128_GCM, &expand::<16>(&secret, b"key")).unwrap();
        Keys { key: aead::LessSafeKey::new(key), iv: expand(&secret, b"iv") }
    }
}

/// HKDF-Expand-Label without context (RFC 8446 section 7.1).
fn expand<const LEN: usize>(secret: &hkdf::Prk, label: &[u8]) -> [u8; LEN] {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let (len, full) = ([0, LEN as u8], [6 + label.len() as u8]);
    let info = [&len[..], &full, b"tls13 ", label, &[0]];
    let mut out = [0; LEN];
    secret.expand(&info, Len(LEN)).unwrap().fill(&mut out).unwrap();
    out
}

/// The keys of one direction.
pub(crate) struct Keys {
    key: aead::LessSafeKey,
    iv: [u8; 12],
}

impl Keys {
    fn nonce(&self, number: u64) -> aead::Nonce {
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(number.to_be_bytes()).for_each(|(byte, with)| *byte ^= with);
        aead::Nonce::assume_unique_for_key(nonce)
    }

    /// A record with bytes of handshake messages. `number`: of the records with these keys.
    pub(crate) fn seal(&self, number: u64, bytes: &[u8]) -> Vec<u8> {
        let mut inner = [bytes, &[HANDSHAKE]].concat();
        let header = header(APPLICATION_DATA, inner.len() + 16);
        self.key.seal_in_place_append_tag(self.nonce(number), aead::Aad::from(header), &mut inner).unwrap();
        [&header[..], &inner].concat()
    }

    /// The handshake messages in the last record of some.
    pub(crate) fn open_last(&self, number: u64, mut records: &[u8]) -> Vec<u8> {
        loop {
            let len = usize::from(u16::from_be_bytes([records[3], records[4]]));
            let (record, behind) = records.split_at(5 + len);
            if behind.is_empty() {
                let (header, mut inner) = (record[..5].to_vec(), record[5..].to_vec());
                let aad = aead::Aad::from(&header[..]);
                let plain = self.key.open_in_place(self.nonce(number), aad, &mut inner).unwrap();
                assert_eq!(plain.last(), Some(&HANDSHAKE));
                return plain[..plain.len() - 1].to_vec();
            }
            records = behind;
        }
    }
}

/// A record with bytes of a ClientHello.
pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut header = header(HANDSHAKE, bytes.len());
    header[2] = 1;
    [&header[..], bytes].concat()
}

fn header(kind: u8, len: usize) -> [u8; 5] {
    let [high, low] = (len as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}
