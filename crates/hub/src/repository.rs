//! A model on a hub: which of its files are needed, and the order in which hubs are asked.

use std::path::Path;

use crate::cache::Cache;
use crate::transfer::{Sum, fetch};
use crate::{HubError, HubOptions, Located, Progress, Wanted, huggingface, modelscope};

/// What the name of a GGUF file must contain when the user asks for nothing else.
const DEFAULT_GGUF: &str = "Q4_K_M";

/// `owner/name`, optionally `@revision` and `:quantisation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    /// The part before the slash.
    pub owner: String,
    /// The part behind it.
    pub name: String,
    /// Branch, tag or commit; `main` when not given.
    pub revision: Option<String>,
    /// For GGUF repositories: what the file's name must contain, for example `Q4_K_M`.
    pub file: Option<String>,
}

impl ModelId {
    /// Reads `owner/name[@revision][:file]`; `None` when it is no such thing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (text, file) = split_last(text, ':');
        let (text, revision) = split_last(text, '@');
        let (owner, name) = text.split_once('/')?;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        (plain(owner) && plain(name)).then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// Whether this GGUF file is the one to load of its repository.
    fn means(&self, gguf: &str) -> bool {
        let asked = self.file.as_deref().unwrap_or(DEFAULT_GGUF).to_ascii_lowercase();
        is_gguf(gguf) && gguf.to_ascii_lowercase().contains(&asked) && !is_part(gguf)
    }

    /// The same model at the revision given beside its name, when one is.
    pub(crate) fn at(self, revision: Option<&str>) -> Result<Self, HubError> {
        match (&self.revision, revision) {
            (_, None) => Ok(self),
            (Some(written), Some(given)) if written != given => Err(HubError::Unfit(format!(
                "{} is asked for at two revisions, {written} and {given}: give one of them",
                self.repository()
            ))),
            (_, Some(given)) => Ok(Self { revision: Some(given.to_owned()), ..self }),
        }
    }

    /// `owner/name`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// Text as one segment of an address or one value of a query: a branch may be called `fix/rope+yarn`.
pub(crate) fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

fn split_last(text: &str, at: char) -> (&str, Option<&str>) {
    match text.rsplit_once(at) {
        Some((before, behind)) if !behind.is_empty() => (before, Some(behind)),
        _ => (text, None),
    }
}

/// One file as a hub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sum: Sum,
    pub(crate) url: String,
}

/// A repository at one commit.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
    /// Sent with each file's request.
    pub(crate) token: Option<String>,
    /// For people: where this comes from.
    pub(crate) source: &'static str,
}

/// The files of a model, from the cache or the first hub that has them.
pub(crate) fn locate(
    id: &ModelId,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<Located, HubError> {
    let cache = Cache::new(&options.cache, &id.repository());
    if options.offline {
        return cached(id, &cache, options.what).ok_or_else(|| {
            HubError::NotHere(format!("{} is not complete in {}", id.repository(), cache.folder().display()))
        });
    }
    type Source = fn(&ModelId, &HubOptions) -> Result<Listing, HubError>;
    let sources: [(&str, Source); 2] =
        [("Hugging Face", huggingface::list), ("ModelScope", modelscope::list)];
    let mut failures = Vec::new();
    for (name, list) in sources {
        match list(id, options).and_then(|listing| download(id, &listing, &cache, options.what, progress)) {
            Ok(located) => return Ok(located),
            Err(failure) => {
                progress.notice(&format!("{name}: {failure}"));
                failures.push(failure);
            }
        }
    }
    // A copy that was complete once serves when no hub answers.
    match cached(id, &cache, options.what) {
        Some(located) => {
            progress.notice(&format!("no hub gave it; using the copy in {}", located.path.display()));
            Ok(located)
        }
        None => Err(first_refusal(failures)),
    }
}

/// The failure that tells the user most: a hub that knows the model and refuses it, before one that does not answer.
fn first_refusal(mut failures: Vec<HubError>) -> HubError {
    let told = failures.iter().position(|failure| matches!(failure, HubError::Refused(_))).unwrap_or(0);
    failures.swap_remove(told)
}

fn download(
    id: &ModelId,
    listing: &Listing,
    cache: &Cache,
    what: Wanted,
    progress: &dyn Progress,
) -> Result<Located, HubError> {
    let wanted = select(id, &listing.files, what)?;
    for file in &wanted {
        let blob = cache.blob(&file.sum)?;
        if !blob.exists() {
            fetch(file, listing, &blob, progress)?;
        }
        cache.link(&listing.commit, &file.name, &blob)?;
    }
    let revision = id.revision.as_deref().unwrap_or("main");
    // A description must not hide the complete copy of an earlier commit from those who are offline.
    if what == Wanted::All || cache.referenced_snapshot(revision).is_none() {
        cache.set_reference(revision, &listing.commit)?;
    }
    let snapshot = cache.snapshot(&listing.commit);
    let path = match wanted.iter().find(|file| is_gguf(&file.name)) {
        Some(file) => snapshot.join(&file.name),
        None => snapshot,
    };
    Ok(Located { path, name: id.repository() })
}

/// The files to load: configuration, tokenizer and safetensors; or one GGUF file of a repository of such.
fn select(id: &ModelId, files: &[RemoteFile], what: Wanted) -> Result<Vec<RemoteFile>, HubError> {
    const SIDE_FILES: [&str; 5] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let weights: Vec<_> = files.iter().filter(|file| is_weight(&file.name)).cloned().collect();
    if id.file.is_none() && !weights.is_empty() {
        let side = files.iter().filter(|file| SIDE_FILES.contains(&file.name.as_str())).cloned();
        return Ok(match what {
            Wanted::All => side.chain(weights).collect(),
            Wanted::Description => side.collect(),
        });
    }
    let ggufs: Vec<_> = files.iter().filter(|file| is_gguf(&file.name)).collect();
    match ggufs.iter().find(|file| id.means(&file.name)) {
        Some(file) if what == Wanted::Description => Err(HubError::Unfit(format!(
            "the description of {} lies inside its weights ({}): fetch them with `phalanx pull`, or name the repository of its safetensors",
            id.repository(),
            file.name
        ))),
        Some(file) => Ok(vec![(*file).clone()]),
        None => Err(HubError::NotFound(format!(
            "{} has no safetensors and no GGUF file in one piece named like {}; its GGUF files: {}",
            id.repository(),
            id.file.as_deref().unwrap_or(DEFAULT_GGUF),
            ggufs.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn is_weight(name: &str) -> bool {
    !name.contains('/') && (name.ends_with(".safetensors") || name == "model.safetensors.index.json")
}

fn is_gguf(name: &str) -> bool {
    !name.contains('/') && name.to_ascii_lowercase().ends_with(".gguf")
}

/// Whether a GGUF file is one of several (`…-00001-of-00002.gguf`), which only together are a model.
fn is_part(name: &str) -> bool {
    name.to_ascii_lowercase().contains("-of-0")
}

/// What the cache holds of the revision asked for, when it is complete: every file the safetensors index names.
fn cached(id: &ModelId, cache: &Cache, what: Wanted) -> Option<Located> {
    let snapshot = cache.referenced_snapshot(id.revision.as_deref().unwrap_or("main"))?;
    let name = id.repository();
    let complete = || match what {
        Wanted::All => safetensors_complete(&snapshot),
        Wanted::Description => snapshot.join("tokenizer.json").exists(),
    };
    if id.file.is_none() && snapshot.join("config.json").exists() && complete() {
        return Some(Located { path: snapshot, name });
    }
    let entries = std::fs::read_dir(&snapshot).ok()?;
    let file = entries.flatten().map(|entry| entry.path()).find(|path| {
        path.exists() && path.file_name().is_some_and(|name| id.means(&name.to_string_lossy()))
    })?;
    Some(Located { path: file, name })
}

fn safetensors_complete(snapshot: &Path) -> bool {
    let Ok(index) = std::fs::read_to_string(snapshot.join("model.safetensors.index.json")) else {
        return snapshot.join("model.safetensors").exists();
    };
    let Ok(index) = serde_json::from_str::<serde_json::Value>(&index) else { return false };
    match index["weight_map"].as_object() {
        Some(map) => map.values().all(|file| file.as_str().is_some_and(|file| snapshot.join(file).exists())),
        None => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        let check = |text: &str, expected: Option<(&str, Option<&str>, Option<&str>)>| {
            let id = ModelId::parse(text);
            let parts = id.as_ref().map(|id| (id.repository(), id.revision.as_deref(), id.file.as_deref()));
            let expected = expected.map(|(name, revision, file)| (name.to_owned(), revision, file));
            assert_eq!(parts, expected, "{text}");
        };
        check("Qwen/Qwen2.5-7B-Instruct", Some(("Qwen/Qwen2.5-7B-Instruct", None, None)));
        check("a/b@v1:Q5_K_M", Some(("a/b", Some("v1"), Some("Q5_K_M"))));
        check("no-slash", None);
        check("a/b/c", None);
        check("../etc", None);
        check("a/..", None);
        check("a b/c", None);
    }

    #[test]
    fn revisions_are_one_segment_of_an_address() {
        assert_eq!(percent_encoded("v1.0-rc_2~a"), "v1.0-rc_2~a");
        assert_eq!(percent_encoded("refs/pr/3?x=1&é"), "refs%2Fpr%2F3%3Fx%3D1%26%C3%A9");
    }

    #[test]
    fn a_repositorys_files_are_chosen_by_what_is_wanted() {
        let check = |model: &str, names: &[&str], what: Wanted, expected: Result<&[&str], &str>| {
            let file = |name: &&str| RemoteFile {
                name: (*name).to_owned(),
                bytes: 1,
                sum: Sum::Sha256("0".to_owned()),
                url: String::new(),
            };
            let files: Vec<_> = names.iter().map(file).collect();
            let chosen = select(&ModelId::parse(model).unwrap(), &files, what);
            match (&chosen, expected) {
                (Ok(chosen), Ok(expected)) => {
                    assert_eq!(chosen.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), expected);
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                _ => panic!("{model} of {names:?}: {chosen:?}"),
            }
        };
        let folder = ["config.json", "model.safetensors", "x.q4_k_m.gguf", "notes.txt"];
        check("a/b", &folder, Wanted::All, Ok(&["config.json", "model.safetensors"]));
        check("a/b", &folder, Wanted::Description, Ok(&["config.json"]));
        check("a/b:q4", &folder, Wanted::All, Ok(&["x.q4_k_m.gguf"]));
        let parts = ["m-q4_k_m-00001-of-00002.gguf", "m-q4_k_m-00002-of-00002.gguf"];
        check("a/b", &parts, Wanted::All, Err("no GGUF file in one piece named like Q4_K_M"));
        check("a/b", &[parts[0], parts[1], "m-q4_k_m.gguf"], Wanted::All, Ok(&["m-q4_k_m.gguf"]));
        check("a/b", &["m-q4_k_m.gguf"], Wanted::Description, Err("lies inside its weights (m-q4_k_m.gguf)"));
    }
}
