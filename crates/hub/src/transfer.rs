//! One file's way over HTTP: resumed where it broke off, tried again after a pause, checked, then named.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::ResponseExt;
use ureq::tls::{RootCerts, TlsConfig};

use crate::repository::{Listing, RemoteFile};
use crate::{HubError, Progress};

/// Breaks of the connection that are resumed before giving up; progress starts the count anew.
const MAX_FRUITLESS_ATTEMPTS: u32 = 5;
/// No answer for this long is a break.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// One request's body may take this long; what came is kept and the next request goes on behind it.
const BODY_LIMIT: Duration = Duration::from_secs(600);
const BUFFER_BYTES: usize = 1 << 20;

/// A published sum, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Sha256(String),
    /// What git calls a file: sha1 of `blob SIZE\0` and the bytes. Hubs publish it for small files.
    GitBlob(String),
}

impl Sum {
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// The sum of a file, of the kind `self` is.
    fn of(&self, path: &Path) -> Result<String, HubError> {
        let mut file = File::open(path).map_err(HubError::disk(path))?;
        let bytes = file.metadata().map_err(HubError::disk(path))?.len();
        match self {
            Self::Sha256(_) => digest(Sha256::new(), &mut file, path),
            Self::GitBlob(_) => digest(Sha1::new_with_prefix(format!("blob {bytes}\0")), &mut file, path),
        }
    }

    /// Deletes the file and fails when its sum is not this one.
    pub(crate) fn check(&self, path: &Path, name: &str) -> Result<(), HubError> {
        let actual = self.of(path)?;
        if actual == self.hex() {
            return Ok(());
        }
        fs::remove_file(path).map_err(HubError::disk(path))?;
        Err(HubError::Checksum { file: name.to_owned(), expected: self.hex().to_owned(), actual })
    }
}

fn digest(mut digest: impl Digest, file: &mut File, path: &Path) -> Result<String, HubError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer).map_err(HubError::disk(path))? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => digest.update(&buffer[..count]),
        }
    }
}

/// A client that says who it is, trusts what this machine trusts, and gives up on silence, not on slowness.
pub(crate) fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .user_agent(concat!("phalanx/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(ANSWER_LIMIT))
        .timeout_recv_body(Some(BODY_LIMIT))
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .http_status_as_error(false)
        .build()
        .into()
}

/// The right to make a file, which one process has at a time.
pub(crate) struct Claim {
    _held: File,
    path: PathBuf,
}

impl Claim {
    /// Waits for the right to make `target`; `None` when another process made it meanwhile.
    pub(crate) fn take(target: &Path, name: &str, progress: &dyn Progress) -> Result<Option<Self>, HubError> {
        let folder = target.parent().expect("a fetched file has a folder");
        fs::create_dir_all(folder).map_err(HubError::disk(folder))?;
        let path = beside(target, "lock");
        let mut told = false;
        loop {
            let held = File::create(&path).map_err(HubError::disk(&path))?;
            match held.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        progress.notice(&format!("another process is fetching {name}; waiting for it"));
                    }
                    held.lock().map_err(HubError::disk(&path))?;
                }
                // A file system without locks: not fetching twice at once is left to the user.
                Err(TryLockError::Error(_)) => {}
            }
            // The one before removed the file that we waited for; the lock that counts is the one with the name.
            if is_same(&held, &path) {
                let claim = Self { _held: held, path };
                return Ok((!target.exists()).then_some(claim));
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // One that stays is only untidy.
        let _left_over = fs::remove_file(&self.path);
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(file), Ok(named)) => (file.dev(), file.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// `target` with one more extension.
pub(crate) fn beside(target: &Path, extension: &str) -> PathBuf {
    PathBuf::from(format!("{}.{extension}", target.display()))
}

/// Fetches `file` to `target`: into `target.incomplete`, from where an earlier attempt ended, and renamed when its sum is right.
pub(crate) fn fetch(
    file: &RemoteFile,
    listing: &Listing,
    target: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let Some(_claim) = Claim::take(target, &file.name, progress)? else { return Ok(()) };
    let partial = beside(target, "incomplete");
    progress.start(&file.name, listing.source, length(&partial).min(file.bytes), file.bytes);
    fetch_partial(file, listing.token.as_deref(), &partial, progress)?;
    file.sum.check(&partial, &file.name)?;
    fs::rename(&partial, target).map_err(HubError::disk(target))?;
    progress.finish();
    Ok(())
}

/// Goes on with `partial` until it has all its bytes, or fails for good.
fn fetch_partial(
    file: &RemoteFile,
    token: Option<&str>,
    partial: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let agent = client();
    let mut fruitless = 0;
    loop {
        let before = length(partial);
        match continue_at(&agent, file, token, partial, progress) {
            Ok(()) if length(partial) == file.bytes => return Ok(()),
            Err(HubError::Transfer(_)) | Ok(()) if fruitless < MAX_FRUITLESS_ATTEMPTS => {
                fruitless = if before < length(partial) { 0 } else { fruitless + 1 };
                std::thread::sleep(Duration::from_millis(200 << fruitless.min(6)));
            }
            Err(failure) => return Err(failure),
            Ok(()) => {
                return Err(HubError::Transfer(format!(
                    "{} ends after {} of {} bytes again and again",
                    file.url,
                    length(partial),
                    file.bytes
                )));
            }
        }
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// One request: appends to `partial` what is missing.
fn continue_at(
    agent: &ureq::Agent,
    file: &RemoteFile,
    token: Option<&str>,
    partial: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let mut done = length(partial);
    if file.bytes <= done {
        // Complete, or longer than it should be: the latter is not this file.
        return match file.bytes == done {
            true => Ok(()),
            false => fs::remove_file(partial).map_err(HubError::disk(partial)),
        };
    }
    // Sizes, sums and ranges are those of the file itself, not of some compression of it.
    let request = authorised(agent.get(&file.url), token)
        .header("Range", format!("bytes={done}-"))
        .header("Accept-Encoding", "identity");
    let response = request.call().map_err(|error| HubError::Transfer(format!("{}: {error}", file.url)))?;
    match response.status().as_u16() {
        206 => {}
        // The server does not know ranges and sends everything from the start.
        200 => done = 0,
        401 | 403 => return Err(refused(&file.url, response.status().as_u16())),
        status => {
            return Err(HubError::Transfer(format!("{} answers {status}", response.get_uri())));
        }
    }
    let mut target =
        OpenOptions::new().create(true).append(true).open(partial).map_err(HubError::disk(partial))?;
    target.set_len(done).map_err(HubError::disk(partial))?;
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                target.write_all(&buffer[..count]).map_err(HubError::disk(partial))?;
                done += count as u64;
                progress.advance(done);
            }
            Err(error) => return Err(HubError::Transfer(format!("{}: {error}", file.url))),
        }
    }
}

/// What a hub's 401 or 403 means to a user.
pub(crate) fn refused(url: &str, status: u16) -> HubError {
    HubError::Refused(format!(
        "{url} answers {status}: the model is private, gated or misspelt; accept its terms on the hub and give a token (HF_TOKEN or --hf-token)"
    ))
}

/// Adds the bearer token, when there is one.
pub(crate) fn authorised(
    request: ureq::RequestBuilder<ureq::typestate::WithoutBody>,
    token: Option<&str>,
) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
    match token {
        Some(token) => request.header("Authorization", format!("Bearer {token}")),
        None => request,
    }
}
