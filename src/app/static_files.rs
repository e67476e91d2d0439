//! Files of a folder.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use percent_encoding::percent_decode_str;

use super::{App, Request, Response};

/// Bytes of a file that is served; a larger one is refused with 413, since responses are sent whole.
const FILE_BYTES: u64 = 16 * 1024 * 1024;

pub(super) fn add(app: &App, prefix: &str, folder: PathBuf) {
    let prefix: Rc<str> = prefix.trim_end_matches('/').into();
    let folder: Rc<Path> = folder.into();
    let pattern = format!("{prefix}/*");
    app.get(&pattern, move |request: Request, response: Response| {
        let (prefix, folder) = (prefix.clone(), folder.clone());
        async move { serve(&request, response, &prefix, &folder).await }
    });
}

async fn serve(request: &Request, response: Response, prefix: &str, folder: &Path) {
    let below = request.path().strip_prefix(prefix).unwrap_or_default();
    let Some(path) = resolve(folder, below) else { return response.status(404).end("Not Found") };
    match read(&path).await {
        Ok(body) => response
            .header("Content-Type", content_type(&path))
            .header("X-Content-Type-Options", "nosniff")
            .end(body),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            response.status(413).end("Content Too Large");
        }
        Err(_) => response.status(404).end("Not Found"),
    }
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = monoio::fs::File::open(path).await?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    if metadata.len() > FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let (result, body) = file.read_exact_at(vec![0; metadata.len() as usize], 0).await;
    result.map(|()| body)
}

/// The file that a path below the prefix names; nothing that leads out of the folder or is hidden.
fn resolve(folder: &Path, below: &str) -> Option<PathBuf> {
    let decoded = percent_decode_str(below).decode_utf8().ok()?;
    let mut path = folder.to_path_buf();
    for segment in decoded.split('/').filter(|segment| !segment.is_empty()) {
        let hidden = segment.starts_with('.');
        if hidden || segment.contains(['\\', '\0']) {
            return None;
        }
        path.push(segment);
    }
    if decoded.ends_with('/') || decoded.is_empty() {
        path.push("index.html");
    }
    Some(path)
}

pub(crate) fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "application/javascript; charset=utf-8",
        "json" | "map" => "application/json; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "wasm" => "application/wasm",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_is_named() {
        let folder = Path::new("/srv");
        assert_eq!(resolve(folder, "/a/b.js"), Some("/srv/a/b.js".into()));
        assert_eq!(resolve(folder, "/"), Some("/srv/index.html".into()));
        for path in
            ["/../etc/passwd", "/%2e%2e/etc/passwd", "/a/..%2f..%2fb", "/.git/config", "/a%00b", "/..\\b"]
        {
            assert_eq!(resolve(folder, path), None, "{path}");
        }
    }
}
