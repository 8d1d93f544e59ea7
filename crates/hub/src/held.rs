//! What a cache folder holds: whole models, and downloads that broke off.

use std::fs;
use std::path::{Path, PathBuf};

/// One model of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldModel {
    /// As it is asked for: a hub id, or a name of the catalogue.
    pub name: String,
    /// A folder with `config.json`, or a `.gguf` file.
    pub path: PathBuf,
    /// Of all its files.
    pub bytes: u64,
    /// Names in the folder behind which there is no file: a download was interrupted, or a cleaner went through.
    pub missing: Vec<String>,
}

/// A download that broke off; fetching the model again goes on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The model it belongs to.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What is there of it.
    pub bytes: u64,
}

/// Everything in a cache folder, by name. A folder that is not there holds nothing.
#[must_use]
pub fn held(cache: &Path) -> (Vec<HeldModel>, Vec<Partial>) {
    let (mut models, mut partials) = (Vec::new(), Vec::new());
    for repository in entries(cache) {
        let folder = repository.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(name) = folder.strip_prefix("models--") {
            let name = name.replacen("--", "/", 1);
            for snapshot in entries(&repository.join("snapshots")) {
                models.extend(in_folder(&snapshot, |_| name.clone()));
            }
            partials.extend(broken_off(&repository.join("blobs"), &name));
        } else if folder == "catalogue" {
            let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            models.extend(in_folder(&repository, stem));
            partials.extend(broken_off(&repository, "catalogue"));
        }
    }
    models.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    (models, partials)
}

/// Each GGUF file is a model of its own; safetensors make one of their folder.
fn in_folder(folder: &Path, name: impl Fn(&Path) -> String) -> Vec<HeldModel> {
    let (ggufs, others): (Vec<PathBuf>, Vec<PathBuf>) = entries(folder)
        .into_iter()
        .filter(|path| !path.is_dir())
        .partition(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let missing = |paths: &[PathBuf]| -> Vec<String> {
        let dangling = paths.iter().filter(|path| !path.exists());
        dangling.map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect()
    };
    let bytes = |path: &PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
    let mut models: Vec<HeldModel> = ggufs
        .iter()
        .map(|path| HeldModel {
            name: name(path),
            path: path.clone(),
            bytes: bytes(path),
            missing: missing(std::slice::from_ref(path)),
        })
        .collect();
    if others.iter().any(|path| path.ends_with("config.json")) {
        models.push(HeldModel {
            name: name(folder),
            path: folder.to_owned(),
            bytes: others.iter().map(bytes).sum(),
            missing: missing(&others),
        });
    }
    models
}

fn broken_off(folder: &Path, name: &str) -> Vec<Partial> {
    let partial = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "incomplete");
    let of = |path: PathBuf| Partial {
        name: name.to_owned(),
        bytes: path.metadata().map_or(0, |metadata| metadata.len()),
        path,
    };
    entries(folder).into_iter().filter(partial).map(of).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::transfer::Sum;

    #[test]
    fn whole_models_broken_downloads_and_dangling_links_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(held(&root.path().join("nothing")), (Vec::new(), Vec::new()));
        let cache = Cache::new(root.path(), "o/m-x");
        let put = |sum: &str, name: &str, text: Option<&str>| {
            let blob = cache.blob(&Sum::Sha256(sum.to_owned())).unwrap();
            fs::create_dir_all(blob.parent().unwrap()).unwrap();
            if let Some(text) = text {
                fs::write(&blob, text).unwrap();
            }
            cache.link("0abc", name, &blob).unwrap();
        };
        put("01", "config.json", Some("{}"));
        put("02", "model.safetensors", None);
        put("03", "q4.gguf", Some("hello"));
        fs::write(cache.folder().join("blobs/02.incomplete"), "abc").unwrap();
        let (models, partials) = held(root.path());
        let told: Vec<_> =
            models.iter().map(|model| (model.name.as_str(), model.bytes, model.missing.as_slice())).collect();
        assert_eq!(told, [("o/m-x", 2, &["model.safetensors".to_owned()][..]), ("o/m-x", 5, &[][..])]);
        assert_eq!(partials.iter().map(|partial| partial.bytes).collect::<Vec<_>>(), [3]);
    }
}
