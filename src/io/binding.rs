//! Servers on engines of somebody else.

use std::rc::Rc;

use super::server::Upward;
use super::{Options, Server};
use crate::app::App;
use crate::engine;

impl Server {
    /// A server without an engine of its own: [`bind`](Self::bind) and [`onconnection`](Self::onconnection)
    /// bring it the sessions of others. Its path only tells it apart from other servers of the process.
    ///
    /// ```no_run
    /// # use sockring::app::App;
    /// use sockring::engine::{self, Handlers};
    /// use sockring::io::{Options, Server, Socket};
    /// # fn set_up(app: &App) {
    /// let engine = engine::Server::attach(app, engine::Options::default(), Handlers::default());
    /// let io = Server::new(app, Options::default());
    /// io.on_connection(|socket: Socket| socket.join("lobby"));
    /// io.bind(&engine);
    /// # }
    /// ```
    pub fn new(app: &App, options: Options) -> Self {
        let inner = Self::make(app, options);
        app.0.add_layer(Rc::new(Upward(inner.clone())));
        Self(inner)
    }

    /// Takes over all sessions that open on an engine of this core from now on: their events come here, and
    /// no longer to what the engine was made with.
    pub fn bind(&self, engine: &engine::Server) -> &Self {
        engine.hand_over(Rc::new(Upward(self.0.clone())));
        self
    }

    /// Takes over one session of an engine, such as one that its `connection` handler was given. From now on
    /// its messages are packets of Socket.IO. One that has ended is ignored.
    pub fn onconnection(&self, conn: engine::Socket) -> &Self {
        if conn.hand_over(Rc::new(Upward(self.0.clone()))) {
            self.0.client_connected(conn);
        }
        self
    }
}
