//! The routes of the client's bundles, as `serveClient` of the reference.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::Options;
use super::client_bundles::{Bundles, OFFERED};
use crate::app::{App, Request, Response};
use crate::engine::{Cors, Headers};
use crate::protocol::http::{Coding, negotiate, none_match};

/// Adds a route for each bundle. Any other name, and any other method, is the engine's, as is everything
/// when there are no bundles.
pub(super) fn serve(app: &App, prefix: &str, options: &Options) {
    if !options.serve_client {
        return;
    }
    let bundles = match Bundles::load(options.client_dist.as_deref()) {
        Ok(bundles) => bundles,
        Err(problem) => {
            // Each core comes here; a folder that was named is worth a warning.
            match (app.core().index(), &options.client_dist) {
                (0, Some(_)) => tracing::warn!("the client's bundles are not served: {problem}"),
                (0, None) => tracing::info!("the client's bundles are not served: {problem}"),
                _ => {}
            }
            return;
        }
    };
    let cors = Rc::new(options.engine.cors.clone());
    for (file, bundle) in bundles.files.iter().enumerate() {
        let (bundles, cors) = (bundles.clone(), cors.clone());
        app.get(&format!("{prefix}{}", bundle.name), move |request: Request, response: Response| {
            answer(&bundles, file, cors.as_ref().as_ref(), &request, response);
        });
    }
}

fn answer(bundles: &Arc<Bundles>, file: usize, cors: Option<&Cors>, request: &Request, response: Response) {
    let mut headers = Headers::default();
    if let Some(cors) = cors {
        // The route is for GET and HEAD, so it is no preflight.
        cors.answer(request, &mut headers);
    }
    headers.add_to_list("Vary", "Accept-Encoding");
    headers.append("Cache-Control", "public, max-age=0");
    headers.append("ETag", bundles.etag.clone());
    let mut response = headers.answer(response);
    if request.header("if-none-match").is_some_and(|known| none_match(known, &bundles.etag)) {
        return response.status(304).end("");
    }
    let kind = if bundles.files[file].is_map() { "json" } else { "javascript" };
    response = response.header("Content-Type", format!("application/{kind}; charset=utf-8"));
    send(bundles, file, negotiate(request.header("accept-encoding"), &OFFERED), response);
}

fn send(bundles: &Arc<Bundles>, file: usize, coding: Coding, response: Response) {
    let end = |response: Response, (coding, bytes): (Coding, Bytes)| match coding.name() {
        Some(name) => response.header("Content-Encoding", name).end(bytes),
        None => response.end(bytes),
    };
    if let Some(ready) = bundles.ready(file, coding) {
        return end(response, ready);
    }
    let Some(core) = crate::runtime::current() else { return };
    let bundles = bundles.clone();
    core.clone().spawn(async move {
        let coded = bundles.coded(&core, file, coding).await;
        end(response, coded);
    });
}
