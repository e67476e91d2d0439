//! TLS for the client's connections. It trusts every certificate: these tools speak to loopback only.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use crate::Outcome;

/// Full handshakes, as of clients that have not been here before.
pub(crate) fn config() -> Outcome<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A session whose first words are `request`, and its first flight.
pub(crate) fn begin(
    config: &Arc<ClientConfig>,
    request: &[u8],
) -> io::Result<(Box<ClientConnection>, Vec<u8>)> {
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut session = Box::new(ClientConnection::new(config.clone(), name).map_err(io::Error::other)?);
    let hello = seal(&mut session, request)?;
    Ok((session, hello))
}

/// Encrypts.
pub(crate) fn seal(session: &mut ClientConnection, plain: &[u8]) -> io::Result<Vec<u8>> {
    session.set_buffer_limit(None);
    session.writer().write_all(plain)?;
    flush(session)
}

fn flush(session: &mut ClientConnection) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut records)?;
    }
    Ok(records)
}

/// Decrypts; the plaintext, and what is to be sent.
pub(crate) fn receive(session: &mut ClientConnection, mut bytes: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        session.read_tls(&mut bytes)?;
        session.process_new_packets().map_err(io::Error::other)?;
        match session.reader().read_to_end(&mut plain) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((plain, flush(session)?))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
