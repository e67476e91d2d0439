//! Finding and reading the files of a folder, and no others.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use monoio::fs::{File, OpenOptions};

/// A folder whose files are served.
pub(super) struct Folder {
    path: PathBuf,
    /// The same without symbolic links, as it was when last looked at.
    real: RefCell<PathBuf>,
}

/// What a name stands for.
pub(super) enum Found {
    File(Opened),
    Folder,
    Nothing,
    Failed(io::Error),
}

/// A file that is open.
pub(super) struct Opened {
    file: File,
    pub(super) length: u64,
    modified: Option<SystemTime>,
    /// An entity tag, with its quotes.
    pub(super) etag: String,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        let real = path.canonicalize().unwrap_or_else(|error| {
            tracing::warn!("{} cannot be served yet: {error}", path.display());
            PathBuf::new()
        });
        Self { path, real: RefCell::new(real) }
    }

    /// Opens a file by its name in the folder. Symbolic links are followed as long as they do not lead out.
    /// `now` decides whether its tag is strong.
    pub(super) async fn find(&self, name: &Path, now: SystemTime) -> Found {
        // O_NONBLOCK: to open a FIFO waits for a writer otherwise.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(self.path.join(name)).await;
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP | libc::ENAMETOOLONG) => {
                        Found::Nothing
                    }
                    // Devices and sockets that cannot be opened like files.
                    Some(libc::ENXIO | libc::ENODEV | libc::EPERM) => Found::Nothing,
                    _ => Found::Failed(error),
                };
            }
        };
        match self.holds(&file) {
            Ok(true) => {}
            Ok(false) => return Found::Nothing,
            Err(error) => return Found::Failed(error),
        }
        match file.metadata().await {
            Ok(metadata) if metadata.is_dir() => Found::Folder,
            Ok(metadata) if metadata.is_file() => {
                let (length, modified) = (metadata.len(), metadata.modified().ok());
                let etag = etag(length, metadata.ino(), modified, now);
                Found::File(Opened { file, length, modified, etag })
            }
            Ok(_) => Found::Nothing,
            Err(error) => Found::Failed(error),
        }
    }

    /// Whether an open file lies in the folder. The kernel is asked what was opened: names may be changed
    /// between a look at them and the opening, an open file may not. Neither call waits for a disk.
    fn holds(&self, file: &File) -> io::Result<bool> {
        let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if self.has(&real) {
            return Ok(true);
        }
        // The folder may be a link that leads elsewhere since the last look, to a new release for instance.
        *self.real.borrow_mut() = self.path.canonicalize()?;
        Ok(self.has(&real))
    }

    fn has(&self, real: &Path) -> bool {
        let folder = self.real.borrow();
        !folder.as_os_str().is_empty() && real.starts_with(&*folder)
    }
}

impl Opened {
    /// When it was last changed, in whole seconds, as dates of HTTP are; never later than now (RFC 9110
    /// section 8.8.2.1).
    pub(super) fn modified_by(&self, now: SystemTime) -> Option<SystemTime> {
        let since = self.modified?.min(now).duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
    }

    /// Reads a part, all of it.
    pub(super) async fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let (result, bytes) = self.file.read_exact_at(vec![0; length], range.start).await;
        result.map(|()| bytes)
    }
}

/// Strong once the file is older than the kernel's clock is coarse: one that was changed a moment ago may be
/// changed again with the same time of change.
fn etag(length: u64, inode: u64, modified: Option<SystemTime>, now: SystemTime) -> String {
    const SETTLED: Duration = Duration::from_secs(1);
    let since = modified.and_then(|modified| modified.duration_since(SystemTime::UNIX_EPOCH).ok());
    let nanos = since.unwrap_or_default().as_nanos();
    let settled =
        modified.and_then(|modified| now.duration_since(modified).ok()).is_some_and(|age| age > SETTLED);
    format!("{}\"{nanos:x}-{length:x}-{inode:x}\"", if settled { "" } else { "W/" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_files_that_were_just_changed_are_weak() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let old = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!(etag(2, 3, old, now), "\"3b9aca00-2-3\"");
        assert!(etag(2, 3, Some(now), now).starts_with("W/\""));
        assert!(etag(2, 3, None, now).starts_with("W/\""));
    }
}
