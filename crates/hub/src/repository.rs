//! A model on a hub: which of its files are needed, and the order in which hubs are asked.

use crate::cache::Cache;
use crate::transfer::{Sum, fetch};
use crate::{HubError, HubOptions, Located, Progress, huggingface, modelscope};

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

    /// `owner/name`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
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
        return cached(id, &cache).ok_or_else(|| {
            HubError::NotFound(format!(
                "{} is not complete in {} and --offline forbids to fetch it",
                id.repository(),
                cache.folder().display()
            ))
        });
    }
    type Source = fn(&ModelId, &HubOptions) -> Result<Listing, HubError>;
    let sources: [(&str, Source); 2] =
        [("Hugging Face", huggingface::list), ("ModelScope", modelscope::list)];
    let mut failures = Vec::new();
    for (name, list) in sources {
        match list(id, options).and_then(|listing| download(id, &listing, &cache, progress)) {
            Ok(located) => return Ok(located),
            Err(failure) => {
                progress.notice(&format!("{name}: {failure}"));
                failures.push(failure);
            }
        }
    }
    // A copy that was complete once serves when no hub answers.
    match cached(id, &cache) {
        Some(located) => {
            progress.notice(&format!("no hub answered; using the copy in {}", located.path.display()));
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
    progress: &dyn Progress,
) -> Result<Located, HubError> {
    let wanted = select(id, &listing.files)?;
    for file in &wanted {
        let blob = cache.blob(&file.sum);
        if !blob.exists() {
            progress.start(&file.name, listing.source, 0, file.bytes);
            fetch(file, listing.token.as_deref(), &blob, progress)?;
            progress.finish();
        }
        cache.link(&listing.commit, &file.name, &blob)?;
    }
    cache.set_reference(id.revision.as_deref().unwrap_or("main"), &listing.commit)?;
    let snapshot = cache.snapshot(&listing.commit);
    let path = match wanted.iter().find(|file| is_gguf(&file.name)) {
        Some(file) => snapshot.join(&file.name),
        None => snapshot,
    };
    Ok(Located { path, name: id.repository() })
}

/// The files to load: configuration, tokenizer and safetensors; or one GGUF file of a repository of such.
fn select(id: &ModelId, files: &[RemoteFile]) -> Result<Vec<RemoteFile>, HubError> {
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
        return Ok(side.chain(weights).collect());
    }
    let asked = id.file.as_deref().unwrap_or("Q4_K_M").to_ascii_lowercase();
    let ggufs: Vec<_> = files.iter().filter(|file| is_gguf(&file.name)).collect();
    match ggufs.iter().find(|file| file.name.to_ascii_lowercase().contains(&asked)) {
        Some(file) => Ok(vec![(*file).clone()]),
        None => Err(HubError::NotFound(format!(
            "{} has no safetensors and no GGUF file named like {asked}; its GGUF files: {}",
            id.repository(),
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

/// What the cache holds of the revision asked for, when it is complete: every file the safetensors index names.
fn cached(id: &ModelId, cache: &Cache) -> Option<Located> {
    let snapshot = cache.referenced_snapshot(id.revision.as_deref().unwrap_or("main"))?;
    let name = id.repository();
    if snapshot.join("config.json").exists() && safetensors_complete(&snapshot) && id.file.is_none() {
        return Some(Located { path: snapshot, name });
    }
    let asked = id.file.as_deref().unwrap_or("Q4_K_M").to_ascii_lowercase();
    let entries = std::fs::read_dir(&snapshot).ok()?;
    let file = entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase());
        name.is_some_and(|name| is_gguf(&name) && name.contains(&asked)) && path.exists()
    })?;
    Some(Located { path: file, name })
}

fn safetensors_complete(snapshot: &std::path::Path) -> bool {
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
}
