//! The middlewares of a namespace decide who joins it.

use std::rc::Rc;
use std::sync::Arc;

use super::extract::{BoxedHandler, Called, EventContext};
use super::namespace::NspInner;
use super::told::Doing;
use super::unfinished::{First, Later, Relay, first_step, weight_of};
use super::{Failure, Socket};
use crate::protocol::sio::Value;
use crate::runtime;

impl NspInner {
    /// Runs the middlewares, then lets the socket in or refuses it. A panic in one refuses.
    pub(super) fn run_middlewares(self: &Rc<Self>, socket: Socket) {
        let middlewares: Vec<BoxedHandler> = self.middlewares.borrow().clone();
        let auth = self.auth(socket);
        let context = EventContext::new(socket, "connection", &auth);
        for (i, middleware) in middlewares.iter().enumerate() {
            let doing = self.doing("a middleware", socket, "connection");
            let passed = match runtime::guarded(&doing, || middleware(&context)) {
                None => Err(panicked()),
                Some(Called::Done(passed)) => passed,
                Some(Called::Later(mut first)) => match first_step(&doing, &mut first) {
                    First::Ready(passed) => passed,
                    First::Panicked => Err(panicked()),
                    First::Waits(relay) => {
                        let (doing, rest) = (doing.into_owned(), middlewares[i + 1..].to_vec());
                        return self.decide_later(socket, (relay, first), rest, doing);
                    }
                },
            };
            if let Err(failure) = passed {
                return self.refuse(socket, &failure);
            }
        }
        self.accept(socket);
    }

    /// Goes on in a task with a middleware that waits, and those after it.
    fn decide_later(
        self: &Rc<Self>,
        socket: Socket,
        (relay, first): (Arc<Relay>, Later<Result<(), Failure>>),
        rest: Vec<BoxedHandler>,
        doing: Doing<'static>,
    ) {
        let (nsp, auth) = (self.clone(), self.auth(socket));
        let weight = weight_of(&auth);
        let decision = Box::pin(async move { nsp.decide(socket, first, &rest, &auth).await });
        let nsp = self.clone();
        let then = move |decided: Option<Result<(), Failure>>| match decided {
            Some(Ok(())) => nsp.accept(socket),
            Some(Err(failure)) => nsp.refuse(socket, &failure),
            None => nsp.refuse(socket, &panicked()),
        };
        self.go_on(socket, weight, (relay, decision), doing, then);
    }

    /// Waits for a middleware, then runs those behind it.
    async fn decide(
        &self,
        socket: Socket,
        first: Later<Result<(), Failure>>,
        rest: &[BoxedHandler],
        auth: &[Value],
    ) -> Result<(), Failure> {
        first.await?;
        for middleware in rest {
            match middleware(&EventContext::new(socket, "connection", auth)) {
                Called::Done(result) => result?,
                Called::Later(later) => later.await?,
            }
        }
        Ok(())
    }

    fn refuse(self: &Rc<Self>, socket: Socket, failure: &Failure) {
        if failure.cause().is_some() {
            let doing = self.doing("a middleware", socket, "connection");
            self.note(&doing, socket, "connection", Err(failure.clone()));
        }
        let Some((conn, v2)) = self.with(socket, |entry| (entry.conn, entry.v2)) else { return };
        let refusal = if v2 {
            self.scope.error_v2(&failure.for_v2())
        } else {
            let (message, details) = (failure.message(), failure.details());
            self.scope.registry.wire.connect_error(&self.scope.nsp, message, details)
        };
        let _ = refusal.map(|refusal| conn.send(&refusal));
        self.drop_client(socket);
        self.forget(socket);
    }
}

/// What a client is told whose middleware has panicked: nothing of the reason.
fn panicked() -> Failure {
    Failure::new("internal server error")
}
