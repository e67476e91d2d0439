//! HTTP routes, raw WebSockets and topics: a server that knows nothing of Socket.IO, usable alone.
//!
//! An [`App`] is to this crate what uWebSockets' `App` is to uWebSockets. The closure that sets it up runs
//! once on each worker, so handlers may hold `Rc` and `RefCell` state of their core; topics reach the
//! subscribers of all cores.
//!
//! ```no_run
//! use sockring::app::{App, Behavior, Message};
//!
//! App::builder()
//!     .listen("127.0.0.1:3000")
//!     .run(|app| {
//!         app.get("/", |_, response| response.end("hello"));
//!         app.ws("/echo", Behavior::<()>::default().message(|ws, message| {
//!             let _ = match message {
//!                 Message::Text(text) => ws.send_text(text),
//!                 Message::Binary(data) => ws.send_binary(data),
//!             };
//!         }));
//!     })
//!     .unwrap();
//! ```

mod behavior;
mod body;
mod builder;
mod http;
mod input;
#[cfg(feature = "prometheus")]
mod metrics;
mod options;
mod request;
mod response;
mod routes;
mod service;
mod static_files;
mod stream;
mod trust;
mod websocket;

use std::rc::Rc;

use bytes::Bytes;

pub use behavior::Behavior;
pub use body::{BodyError, RequestStream};
pub use builder::Builder;
pub use options::Options;
pub use request::Request;
pub use response::Response;
pub use routes::{Answering, AsyncFn, SyncFn};
pub(crate) use routes::{Begun, BodyEnd, HeaderList, Hooks, Refusal, Refused};
pub(crate) use service::Layer;
pub use service::current;
pub use static_files::StaticFiles;
pub use stream::{Aborted, ResponseStream};
pub use trust::{InvalidNetwork, TrustProxy};
pub use websocket::{Closed, Message, Upgrade, WebSocket};

pub use crate::protocol::ws::extensions::PerMessageDeflate;

use crate::fanout::{Delivery, Frame};
use crate::runtime::{self, Adopter, Core, Measuring, Metrics};
use routes::{HttpHandler, Route, Target};
use service::Inner;

/// The routes and sockets of one core. A clone is a reference to the same.
///
/// ```no_run
/// use sockring::app::{App, Behavior};
/// fn set_up(app: &App) {
///     app.get("/", |_, response| response.end("hello"))
///         .ws("/feed", Behavior::<()>::default().open(|ws| {
///             ws.subscribe("news");
///         }));
///     let _ = app.publish_text("news", "somebody has set up a core");
/// }
/// App::builder().listen("127.0.0.1:3000").run(set_up)?;
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(Clone, Debug)]
pub struct App(pub(crate) Rc<Inner>);

/// Adds a route for one method.
macro_rules! method {
    ($name:ident, $method:literal) => {
        #[doc = concat!("Answers ", $method, " requests on paths like `pattern`; see [`any`](Self::any).")]
        pub fn $name<R, M>(&self, pattern: &str, handler: impl Fn(Request, Response) -> R + 'static) -> &Self
        where
            R: Answering<M>,
        {
            self.route(Some($method), pattern, move |request, response| handler(request, response).finish())
        }
    };
}

/// Adds routes with a limit of their own for bodies: see [`App::body_limit`].
///
/// ```no_run
/// # fn set_up(app: &sockring::app::App) {
/// app.body_limit(10).post("/name", |_, response| response.end("a short one"));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit<'a> {
    app: &'a App,
    bytes: usize,
}

impl BodyLimit<'_> {
    method!(post, "POST");
    method!(put, "PUT");
    method!(patch, "PATCH");
    method!(delete, "DELETE");

    /// Answers requests of any method; see [`App::any`].
    pub fn any<R, M>(&self, pattern: &str, handler: impl Fn(Request, Response) -> R + 'static) -> &Self
    where
        R: Answering<M>,
    {
        self.route(None, pattern, move |request, response| handler(request, response).finish())
    }

    fn route(
        &self,
        method: Option<&'static str>,
        pattern: &str,
        handler: impl Fn(Request, Response) + 'static,
    ) -> &Self {
        self.app.add_http_route(method, pattern, Some(self.bytes), HttpHandler::Whole(Rc::new(handler)));
        self
    }
}

/// Adds routes that are served also when the server is full: see [`App::when_full`].
///
/// ```no_run
/// # fn set_up(app: &sockring::app::App) {
/// app.when_full().get("/version", |_, response| response.end("1.2.3"));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct WhenFull<'a> {
    app: &'a App,
}

impl<'a> WhenFull<'a> {
    /// Answers GET requests on paths like `pattern`; see [`App::any`].
    pub fn get<R, M>(&self, pattern: &str, handler: impl Fn(Request, Response) -> R + 'static) -> &'a App
    where
        R: Answering<M>,
    {
        let handler = move |request: Request, response: Response| handler(request, response).finish();
        let handler = HttpHandler::Whole(Rc::new(handler));
        let target = Target::Http { method: Some("GET"), handler, body_bytes: Some(0), hooks: None };
        self.app.0.add_route(Route::new(pattern, target).when_full());
        self.app
    }
}

/// Adds a route for one method whose handler reads the body.
macro_rules! streamed {
    ($name:ident, $method:literal) => {
        #[doc = concat!("Answers ", $method, " requests on paths like `pattern`; see [`App::any`].")]
        pub fn $name<R, M>(
            &self,
            pattern: &str,
            handler: impl Fn(Request, RequestStream, Response) -> R + 'static,
        ) -> &Self
        where
            R: Answering<M>,
        {
            self.route(Some($method), pattern, handler)
        }
    };
}

/// Adds routes whose handlers read bodies as they come: see [`App::body_stream`].
///
/// ```no_run
/// # use sockring::app::{App, Request, RequestStream, Response};
/// # fn set_up(app: &App) {
/// async fn forget(_: Request, mut body: RequestStream, response: Response) {
///     while let Ok(Some(_)) = body.read().await {}
///     response.status(204).end("");
/// }
/// app.body_stream(1_000_000_000).post("/null", forget).put("/null/:name", forget);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BodyStreams<'a> {
    app: &'a App,
    bytes: usize,
}

impl BodyStreams<'_> {
    streamed!(post, "POST");
    streamed!(put, "PUT");
    streamed!(patch, "PATCH");
    streamed!(delete, "DELETE");

    /// Answers requests of any method; see [`App::any`].
    pub fn any<R, M>(
        &self,
        pattern: &str,
        handler: impl Fn(Request, RequestStream, Response) -> R + 'static,
    ) -> &Self
    where
        R: Answering<M>,
    {
        self.route(None, pattern, handler)
    }

    fn route<R, M>(
        &self,
        method: Option<&'static str>,
        pattern: &str,
        handler: impl Fn(Request, RequestStream, Response) -> R + 'static,
    ) -> &Self
    where
        R: Answering<M>,
    {
        let handler = move |request: Request, body: RequestStream, response: Response| {
            handler(request, body, response).finish();
        };
        self.app.add_http_route(method, pattern, Some(self.bytes), HttpHandler::Streamed(Rc::new(handler)));
        self
    }
}

impl App {
    /// Chooses addresses, workers and limits, then starts.
    pub fn builder() -> Builder {
        Builder::default()
    }

    method!(get, "GET");
    method!(post, "POST");
    method!(put, "PUT");
    method!(patch, "PATCH");
    method!(delete, "DELETE");
    method!(options, "OPTIONS");

    /// Answers requests of any method whose path matches `pattern`.
    ///
    /// A pattern is a path; a segment `:name` matches any one segment, which
    /// [`Request::param`] gives, and a last segment `*` matches everything below. Of several routes that
    /// match, the one added first answers. A route for GET answers HEAD as well. The handler takes a
    /// [`Request`] and a [`Response`] and may be async.
    ///
    /// Where no route fits, 404 is answered, 405 if one fits with another method, 426 if one is a
    /// WebSocket's. A route for `/*` that is added last answers all of these itself.
    pub fn any<R, M>(&self, pattern: &str, handler: impl Fn(Request, Response) -> R + 'static) -> &Self
    where
        R: Answering<M>,
    {
        self.route(None, pattern, move |request, response| handler(request, response).finish())
    }

    fn route(
        &self,
        method: Option<&'static str>,
        pattern: &str,
        handler: impl Fn(Request, Response) + 'static,
    ) -> &Self {
        self.add_http_route(method, pattern, None, HttpHandler::Whole(Rc::new(handler)));
        self
    }

    /// Routes that are served also to clients for which there is no place: for what watches the server. All
    /// other requests of such a client are answered with 503 and `Retry-After`. Its connection closes with
    /// the answer.
    ///
    /// ```no_run
    /// # fn set_up(app: &sockring::app::App) {
    /// app.when_full().get("/version", |_, response| response.end("1.2.3"));
    /// # }
    /// ```
    pub fn when_full(&self) -> WhenFull<'_> {
        WhenFull { app: self }
    }

    /// Answers GET requests on a path with `ok`, also when the server is full; with 503 while it stops. For
    /// load balancers and service managers.
    ///
    /// ```no_run
    /// # fn set_up(app: &sockring::app::App) {
    /// app.serve_health("/healthz");
    /// # }
    /// ```
    pub fn serve_health(&self, pattern: &str) -> &Self {
        self.when_full().get(pattern, |_, response| {
            let stopping = runtime::current().is_none_or(|core| core.is_stopping());
            let (status, text) = if stopping { (503, "stopping") } else { (200, "ok") };
            response.status(status).header("Cache-Control", "no-store").end(text);
        })
    }

    fn add_http_route(
        &self,
        method: Option<&'static str>,
        pattern: &str,
        body_bytes: Option<usize>,
        handler: HttpHandler,
    ) {
        let target = Target::Http { method, handler, body_bytes, hooks: None };
        self.0.add_route(Route::new(pattern, target));
    }

    /// Routes whose requests may have bodies up to so many bytes, more or fewer than
    /// [`Options::body_bytes`] says for all others. A body is complete, and in memory, when its handler runs.
    ///
    /// ```no_run
    /// # fn set_up(app: &sockring::app::App) {
    /// app.body_limit(50_000_000).post("/upload", |request, response| {
    ///     response.end(format!("{} bytes", request.body().len()));
    /// });
    /// # }
    /// ```
    pub fn body_limit(&self, bytes: usize) -> BodyLimit<'_> {
        BodyLimit { app: self, bytes }
    }

    /// Routes whose handlers read bodies as they come, up to so many bytes: see [`RequestStream`]. A handler
    /// runs when the head of its request is complete, and its [`Request`] has no body.
    ///
    /// ```no_run
    /// # use sockring::app::{App, BodyError, Request, RequestStream, Response};
    /// # async fn save(_: bytes::Bytes) {}
    /// # fn set_up(app: &App) {
    /// app.body_stream(10_000_000_000).put(
    ///     "/files/:name",
    ///     |request: Request, mut body: RequestStream, response: Response| async move {
    ///         while let Ok(Some(piece)) = body.read().await {
    ///             save(piece).await; // meanwhile the client waits
    ///         }
    ///         response.status(201).end(format!("{} is here", request.param("name").unwrap_or("it")));
    ///     },
    /// );
    /// # }
    /// ```
    pub fn body_stream(&self, bytes: usize) -> BodyStreams<'_> {
        BodyStreams { app: self, bytes }
    }

    /// Answers requests of any method below a prefix of the raw path, with bodies up to `body_bytes`.
    /// For layers that do their own routing.
    pub(crate) fn prefix(
        &self,
        prefix: &str,
        body_bytes: usize,
        hooks: Hooks,
        handler: impl Fn(Request, Response) + 'static,
    ) {
        let (handler, body_bytes, hooks) =
            (HttpHandler::Whole(Rc::new(handler)), Some(body_bytes), Some(hooks));
        let target = Target::Http { method: None, handler, body_bytes, hooks };
        self.0.add_route(Route::prefix(prefix, target));
    }

    /// Serves WebSockets on the path that matches `pattern` (see [`any`](Self::any)).
    pub fn ws<U: 'static>(&self, pattern: &str, behavior: Behavior<U>) -> &Self {
        if let Some(behavior) = self.0.add_behavior(behavior) {
            self.0.add_route(Route::new(pattern, Target::WebSocket(behavior)));
        }
        self
    }

    /// Serves WebSockets on every path that begins with `prefix`.
    pub(crate) fn ws_prefix<U: 'static>(&self, prefix: &str, behavior: Behavior<U>) {
        if let Some(behavior) = self.0.add_behavior(behavior) {
            self.0.add_route(Route::prefix(prefix, Target::WebSocket(behavior)));
        }
    }

    /// Serves the files of a folder below `prefix`: `static_files("/", "public")` answers `/` with
    /// `public/index.html`. Files are read when they are asked for, in pieces; nothing outside the folder is
    /// served, also not through a symbolic link, and no name that begins with a dot.
    ///
    /// Ranges, conditions (`If-None-Match`, `If-Modified-Since`, `If-Range` and others) and compressed forms
    /// beside a file (`app.js.br`, `app.js.gz`) are understood; the path of a folder is redirected to the one
    /// with a slash. A route added before goes first; for a page of your own where no file is, look whether a
    /// route fits better: this one answers everything below its prefix.
    pub fn static_files(&self, prefix: &str, folder: impl Into<std::path::PathBuf>) -> &Self {
        self.static_files_with(prefix, folder, StaticFiles::default())
    }

    /// [`static_files`](Self::static_files), with options.
    pub fn static_files_with(
        &self,
        prefix: &str,
        folder: impl Into<std::path::PathBuf>,
        options: StaticFiles,
    ) -> &Self {
        static_files::add(self, prefix, folder.into(), options);
        self
    }

    /// Sends a text to all subscribers of a topic, on all cores.
    pub fn publish_text(&self, topic: &str, text: &str) -> Delivery {
        self.publish(topic, &Frame::message(&[text.as_bytes()], &[]))
    }

    /// Sends binary data to all subscribers of a topic, on all cores.
    pub fn publish_binary(&self, topic: &str, data: impl Into<Bytes>) -> Delivery {
        self.publish(topic, &Frame::binary(&data.into()))
    }

    /// Sends a frame, encoded before, to all subscribers of a topic, on all cores.
    ///
    /// [`Delivery::Sent`]: it is on its way to every core that has subscribers (and what became of it for
    /// each of them is that core's affair); [`Delivery::Dropped`]: a core's mailbox is full.
    pub fn publish(&self, topic: &str, frame: &Frame) -> Delivery {
        self.0.publish(topic, frame, None)
    }

    /// What gives connections of other servers to this one, from any thread: a handler can take it along
    /// to another runtime.
    pub fn adopter(&self) -> Adopter {
        self.0.core.adopter()
    }

    /// Asks all cores what they have counted.
    ///
    /// ```no_run
    /// # fn set_up(app: &sockring::app::App) {
    /// let all = app.clone();
    /// app.get("/health", move |_, response| {
    ///     let metrics = all.metrics();
    ///     async move { response.end(format!("{} connections", metrics.await.total("connections"))) }
    /// });
    /// # }
    /// ```
    pub fn metrics(&self) -> Measuring {
        Metrics::measure(self.0.core.shared())
    }

    /// The core that this App runs on.
    pub fn core(&self) -> &Rc<Core> {
        &self.0.core
    }
}
