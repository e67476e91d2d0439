//! What the server says through `tracing`, for tests of what it must say.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Whether lines below INFO are kept, too.
static ALL: AtomicBool = AtomicBool::new(false);

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let all = ALL.load(Ordering::Relaxed) && metadata.target().starts_with("sockring");
        all || *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        lines().push(line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn lines() -> MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on lines of INFO and above are kept, for all tests of this binary.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Lines).expect("the first"));
    lines().clear();
}

/// The same with all lines of the server's own.
pub fn keep_all() {
    ALL.store(true, Ordering::Relaxed);
    keep();
}

/// The lines that were said since [`keep`] and contain each of the parts, level and fields included.
pub fn with(parts: &[&str]) -> Vec<String> {
    lines().iter().filter(|line| parts.iter().all(|part| line.contains(part))).cloned().collect()
}
