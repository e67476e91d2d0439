//! The client's bundles, as `serveClient` of the reference.

use std::fs;
use std::path::Path;

use bytes::Bytes;

use crate::app::{App, Request, Response};

/// What is served, and nothing else.
const FILES: [&str; 8] = [
    "socket.io.js",
    "socket.io.js.map",
    "socket.io.min.js",
    "socket.io.min.js.map",
    "socket.io.esm.min.js",
    "socket.io.esm.min.js.map",
    "socket.io.msgpack.min.js",
    "socket.io.msgpack.min.js.map",
];

/// Adds a route for each bundle of the folder; one for a file that is missing says so.
pub(super) fn serve(app: &App, prefix: &str, folder: &Path) {
    for name in FILES {
        let bytes = match fs::read(folder.join(name)) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => {
                tracing::warn!("the client's {name} is not served: {}: {error}", folder.display());
                let advice = format!("{name} is not in the folder of io::Options::client_dist\n");
                app.get(&format!("{prefix}{name}"), move |_: Request, response: Response| {
                    response.status(404).header("Content-Type", "text/plain").end(advice.clone());
                });
                continue;
            }
        };
        let kind = if name.ends_with(".map") { "application/json" } else { "application/javascript" };
        app.get(&format!("{prefix}{name}"), move |_: Request, response: Response| {
            response
                .header("Content-Type", format!("{kind}; charset=utf-8"))
                .header("Cache-Control", "public, max-age=0")
                .end(bytes.clone());
        });
    }
}
