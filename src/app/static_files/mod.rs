//! Files of a folder.

mod content_type;
mod file;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use percent_encoding::percent_decode_str;

use super::http::PIECE_BYTES;
use super::{Aborted, App, Request, Response, ResponseStream};
use crate::protocol::http::{Coding, Ranges, negotiate, none_match};
use crate::time::http_date;
use content_type::content_type;
use file::{Folder, Found, Opened};

/// How files are served: see [`App::static_files_with`].
///
/// ```no_run
/// # use sockring::app::{App, StaticFiles};
/// # fn set_up(app: &App) {
/// // Names with a hash in them: browsers need not ask again for a year.
/// let forever = Some("public, max-age=31536000, immutable".into());
/// let assets = StaticFiles { cache_control: forever, ..StaticFiles::default() };
/// app.static_files_with("/assets", "dist/assets", assets);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StaticFiles {
    /// The `Cache-Control` of every file. `None`, the default, sends none; browsers then ask again after a
    /// while of their own choice, and get 304.
    pub cache_control: Option<Cow<'static, str>>,
    /// Whether `app.js.br` and `app.js.gz` are sent in place of `app.js` to clients that take them. On by
    /// default; it costs a look for them, and a `Vary` header.
    pub precompressed: bool,
    /// The file that stands for a folder; `index.html`.
    pub index: Cow<'static, str>,
}

impl Default for StaticFiles {
    fn default() -> Self {
        Self { cache_control: None, precompressed: true, index: "index.html".into() }
    }
}

pub(super) fn add(app: &App, prefix: &str, folder: PathBuf, options: StaticFiles) {
    let prefix: Rc<str> = prefix.trim_end_matches('/').into();
    let site = Rc::new(Site { folder: Folder::new(folder), options, clock: app.0.clock() });
    let pattern = format!("{prefix}/*");
    app.get(&pattern, move |request: Request, response: Response| {
        let (prefix, site) = (prefix.clone(), site.clone());
        async move { site.serve(&request, response, &prefix).await }
    });
}

struct Site {
    folder: Folder,
    options: StaticFiles,
    clock: fn() -> SystemTime,
}

/// What is to be sent of a file.
enum Answer {
    NotModified,
    PreconditionFailed,
    Unsatisfiable,
    Whole,
    Parts(Vec<Range<u64>>),
}

impl Site {
    async fn serve(&self, request: &Request, response: Response, prefix: &str) {
        let below = request.path().strip_prefix(prefix).unwrap_or_default();
        if below.is_empty() {
            return redirect(request, response);
        }
        let Some(name) = resolve(below, &self.options.index) else { return not_found(response) };
        let found = match self.folder.find(&name, (self.clock)()).await {
            Found::File(file) => file,
            Found::Folder if !below.ends_with('/') => return redirect(request, response),
            Found::Folder | Found::Nothing => return not_found(response),
            Found::Failed(error) => {
                tracing::warn!("{} is not served: {error}", name.display());
                return response
                    .status(500)
                    .header("Content-Type", "text/plain")
                    .end("Internal Server Error");
            }
        };
        let (file, coding) = self.variant(request, &name, found).await;
        let answer = file.judge(request, (self.clock)());
        let response = self.headers(response, &file, coding);
        send(request, response, file, answer, content_type(&name)).await;
    }

    /// The file itself, or its compressed form, if there is one that the client takes.
    async fn variant(&self, request: &Request, name: &Path, found: Opened) -> (Opened, Coding) {
        const FORMS: [(Coding, &str); 2] = [(Coding::Brotli, ".br"), (Coding::Gzip, ".gz")];
        let mut offered: Vec<Coding> = FORMS.iter().map(|(coding, _)| *coding).collect();
        while self.options.precompressed && !offered.is_empty() {
            let coding = negotiate(request.header("accept-encoding"), &offered);
            let Some((_, suffix)) = FORMS.iter().find(|(known, _)| *known == coding) else { break };
            let mut name = name.as_os_str().to_owned();
            name.push(suffix);
            if let Found::File(file) = self.folder.find(Path::new(&name), (self.clock)()).await {
                return (file, coding);
            }
            offered.retain(|other| *other != coding);
        }
        (found, Coding::Identity)
    }

    fn headers(&self, mut response: Response, file: &Opened, coding: Coding) -> Response {
        response = response
            .header("Accept-Ranges", "bytes")
            .header("ETag", file.etag.clone())
            .header("X-Content-Type-Options", "nosniff");
        if let Some(modified) = file.modified_by((self.clock)()).and_then(http_date) {
            response = response.header("Last-Modified", modified);
        }
        if self.options.precompressed {
            response = response.header("Vary", "Accept-Encoding");
        }
        if let Some(coding) = coding.name() {
            response = response.header("Content-Encoding", coding);
        }
        match &self.options.cache_control {
            Some(cache_control) => response.header("Cache-Control", cache_control.clone()),
            None => response,
        }
    }
}

impl Opened {
    /// What the request's conditions and ranges come to (RFC 9110 sections 13.2.2 and 14.2).
    fn judge(&self, request: &Request, now: SystemTime) -> Answer {
        let date = |name| request.header(name).and_then(|text| httpdate::parse_http_date(text).ok());
        let (modified, weak) = (self.modified_by(now), self.etag.starts_with("W/"));
        if let Some(tags) = request.header("if-match") {
            if tags.trim() != "*" && (weak || tags.contains("W/") || !none_match(tags, &self.etag)) {
                return Answer::PreconditionFailed;
            }
        } else if let (Some(date), Some(modified)) = (date("if-unmodified-since"), modified)
            && modified > date
        {
            return Answer::PreconditionFailed;
        }
        if let Some(tags) = request.header("if-none-match") {
            if none_match(tags, &self.etag) {
                return Answer::NotModified;
            }
        } else if let (Some(date), Some(modified)) = (date("if-modified-since"), modified)
            && modified <= date
        {
            return Answer::NotModified;
        }
        let Some(ranges) = request.header("range").filter(|_| request.method() == "GET") else {
            return Answer::Whole;
        };
        if let Some(condition) = request.header("if-range") {
            // Only a strong tag, or the very date (RFC 9110 section 13.1.5).
            let same = if condition.starts_with('"') {
                !weak && condition == self.etag
            } else {
                !weak && modified.is_some() && date("if-range") == modified
            };
            if !same {
                return Answer::Whole;
            }
        }
        match Ranges::parse(ranges, self.length) {
            Ranges::All => Answer::Whole,
            Ranges::Unsatisfiable => Answer::Unsatisfiable,
            Ranges::Some(ranges) => Answer::Parts(ranges.into_vec()),
        }
    }
}

async fn send(request: &Request, response: Response, file: Opened, answer: Answer, kind: &'static str) {
    let length = file.length;
    match answer {
        Answer::NotModified => response.status(304).end(""),
        Answer::PreconditionFailed => {
            response.status(412).header("Content-Type", "text/plain").end("Precondition Failed");
        }
        Answer::Unsatisfiable => response
            .status(416)
            .header("Content-Range", format!("bytes */{length}"))
            .header("Content-Type", "text/plain")
            .end("Range Not Satisfiable"),
        Answer::Whole => {
            let response = response.header("Content-Type", kind);
            if request.method() == "HEAD" {
                return response.stream_of(length).end();
            }
            send_range(response, &file, 0..length).await;
        }
        Answer::Parts(ranges) => match <[Range<u64>; 1]>::try_from(ranges) {
            Ok([range]) => {
                let response = response
                    .status(206)
                    .header("Content-Type", kind)
                    .header("Content-Range", content_range(&range, length));
                send_range(response, &file, range).await;
            }
            Err(ranges) => send_parts(response, &file, &ranges, kind).await,
        },
    }
}

fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end - 1)
}

async fn send_range(response: Response, file: &Opened, range: Range<u64>) {
    let length = range.end - range.start;
    if length <= PIECE_BYTES as u64 {
        return match file.read(range).await {
            Ok(body) => response.end(body),
            Err(error) => {
                tracing::warn!("a file cannot be read: {error}");
                drop(response);
            }
        };
    }
    let mut body = response.stream_of(length);
    if copy(&mut body, file, range).await.is_ok() {
        body.end();
    }
}

/// Writes a part of a file, little by little. An error ends the connection, since the head has left.
async fn copy(body: &mut ResponseStream, file: &Opened, mut range: Range<u64>) -> Result<(), Aborted> {
    while range.start < range.end {
        body.ready().await?;
        let end = range.end.min(range.start + PIECE_BYTES as u64);
        let piece = file.read(range.start..end).await.map_err(|error| {
            tracing::warn!("a file cannot be read: {error}");
            Aborted
        })?;
        body.write(piece).await?;
        range.start = end;
    }
    Ok(())
}

/// Several ranges, as `multipart/byteranges` (RFC 9110 section 14.6).
async fn send_parts(response: Response, file: &Opened, ranges: &[Range<u64>], kind: &str) {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return drop(response);
    }
    // Nobody can have put this into the file.
    let boundary = format!("{:032x}", u128::from_ne_bytes(random));
    let head = |range: &Range<u64>| {
        let range = content_range(range, file.length);
        format!("\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {range}\r\n\r\n")
    };
    let last = format!("\r\n--{boundary}--\r\n");
    let parts: u64 = ranges.iter().map(|range| head(range).len() as u64 + range.end - range.start).sum();
    let mut body = response
        .status(206)
        .header("Content-Type", format!("multipart/byteranges; boundary={boundary}"))
        .stream_of(parts + last.len() as u64);
    for range in ranges {
        if body.write(head(range)).await.is_err() || copy(&mut body, file, range.clone()).await.is_err() {
            return;
        }
    }
    if body.write(last).await.is_ok() {
        body.end();
    }
}

fn not_found(response: Response) {
    response.status(404).header("Content-Type", "text/plain").end("Not Found");
}

/// A folder's name ends with a slash, so that relative links in its page lead into it.
fn redirect(request: &Request, response: Response) {
    // Two slashes in front would name another host.
    let mut location = format!("/{}/", request.path().trim_matches('/'));
    if !request.query().is_empty() {
        location.push('?');
        location.push_str(request.query());
    }
    response.status(301).header("Location", location).end("");
}

/// The name in the folder that a path below the prefix stands for; nothing that leads out of it or is hidden.
fn resolve(below: &str, index: &str) -> Option<PathBuf> {
    let decoded = percent_decode_str(below).decode_utf8().ok()?;
    let mut path = PathBuf::new();
    for segment in decoded.split('/').filter(|segment| !segment.is_empty()) {
        let hidden = segment.starts_with('.');
        if hidden || segment.contains(['\\', '\0']) {
            return None;
        }
        path.push(segment);
    }
    if decoded.ends_with('/') || decoded.is_empty() {
        path.push(index);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_is_named() {
        let resolve = |below| resolve(below, "index.html");
        assert_eq!(resolve("/a/b.js"), Some("a/b.js".into()));
        assert_eq!(resolve("/"), Some("index.html".into()));
        assert_eq!(resolve("/a%20b/"), Some("a b/index.html".into()));
        for path in
            ["/../etc/passwd", "/%2e%2e/etc/passwd", "/a/..%2f..%2fb", "/.git/config", "/a%00b", "/..\\b"]
        {
            assert_eq!(resolve(path), None, "{path}");
        }
    }
}
