//! axum behind sockring: requests that no route of the App takes are answered by a `Router` on tokio.
//!
//! Copy this file into your own project. Answers stream, as server-sent events do. What it does not carry
//! over: upgrades (serve WebSockets with sockring), and requests that stream: a request's body is complete
//! before the router sees it, and no larger than `app::Options::body_bytes`.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::{self, HeaderMap, StatusCode};
use http_body_util::BodyExt;
use sockring::app::{App, Request, Response};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;

/// Pieces of an answer that wait between the two runtimes: a client that reads slowly holds the router's body
/// up, and not the server's memory.
const PIECES: usize = 4;

/// What a router has answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    length: Option<u64>,
    /// The body; an error means that it broke off.
    pieces: mpsc::Receiver<Result<Bytes, axum::Error>>,
}

/// Answers what no other route of this App takes with the router, on tokio's threads. Add it last.
pub(crate) fn mount(app: &App, router: &Router, tokio: &Handle) {
    let (router, tokio) = (router.clone(), tokio.clone());
    app.any("/*", move |request: Request, response: Response| {
        let (router, tokio) = (router.clone(), tokio.clone());
        async move {
            let Some(request) = convert(&request) else {
                return response.status(400).end("Bad Request");
            };
            let (answered, answer) = oneshot::channel();
            let task = tokio.spawn(ask(router, request, answered)).abort_handle();
            response.on_abort(move || task.abort());
            // The core goes on with its sockets meanwhile.
            match answer.await {
                Ok(answer) => pass_on(response, answer).await,
                Err(_) => response.status(500).end("Internal Server Error"),
            }
        }
    });
}

/// The request as axum knows it.
fn convert(request: &Request) -> Option<http::Request<Body>> {
    let mut builder = http::Request::builder().method(request.method()).uri(request.url());
    for (name, value) in request.headers() {
        builder = builder.header(name, value);
    }
    if let Some(peer) = request.peer() {
        builder = builder.extension(ConnectInfo::<SocketAddr>(peer));
    }
    builder.body(Body::from(request.body().clone())).ok()
}

/// Runs on tokio: asks the router, and passes its answer to the core piece by piece.
async fn ask(router: Router, request: http::Request<Body>, answered: oneshot::Sender<Answer>) {
    let Ok(response) = router.oneshot(request).await;
    let (parts, mut body) = response.into_parts();
    let (sender, pieces) = mpsc::channel(PIECES);
    let length = body.size_hint().exact();
    let answer = Answer { status: parts.status, headers: parts.headers, length, pieces };
    if answered.send(answer).is_err() {
        return;
    }
    while let Some(frame) = body.frame().await {
        // Trailers have no place in the answer.
        let piece = frame.map(|frame| frame.into_data().unwrap_or_default());
        if sender.send(piece).await.is_err() {
            return;
        }
    }
}

/// Runs on the core: answers the client.
async fn pass_on(response: Response, answer: Answer) {
    let Answer { status, headers, length, mut pieces } = answer;
    let mut response = response.status(status.as_u16());
    for (name, value) in &headers {
        // Values that are no text are left out.
        if let Ok(value) = value.to_str() {
            response = response.header(name.as_str().to_owned(), value.to_owned());
        }
    }
    let mut body = match length {
        Some(length) => response.stream_of(length),
        None => response.stream(),
    };
    while let Some(piece) = pieces.recv().await {
        // A body that is dropped without an end closes the connection: nobody takes a part for the whole.
        let Ok(piece) = piece else { return };
        if !piece.is_empty() && body.write(piece).await.is_err() {
            return;
        }
    }
    body.end();
}
