//! The folder where fetched models live, in the layout that Hugging Face's own tools read and write:
//! `models--owner--name/{blobs/SUM, snapshots/COMMIT/FILE -> ../../blobs/SUM, refs/REVISION}`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::HubError;
use crate::transfer::Sum;

/// One repository's part of the cache.
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(crate) fn new(root: &Path, repository: &str) -> Self {
        Self { folder: root.join(format!("models--{}", repository.replace('/', "--"))) }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file with this sum lies once it is complete.
    pub(crate) fn blob(&self, sum: &Sum) -> Result<PathBuf, HubError> {
        Ok(self.folder.join("blobs").join(safe(sum.hex())?))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The snapshot that a branch or tag pointed to when it was last fetched; a commit names its own.
    pub(crate) fn referenced_snapshot(&self, revision: &str) -> Option<PathBuf> {
        let revision = safe(revision).ok()?;
        let commit = match fs::read_to_string(self.folder.join("refs").join(revision)) {
            Ok(commit) => PathBuf::from(commit.trim()),
            Err(_) => revision.to_owned(),
        };
        let snapshot = self.folder.join("snapshots").join(commit);
        snapshot.is_dir().then_some(snapshot)
    }

    pub(crate) fn set_reference(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.folder.join("refs").join(safe(revision)?);
        // What is right already is not written: the cache may be one that this process may only read.
        match fs::read_to_string(&path).is_ok_and(|held| held.trim() == commit) {
            true => Ok(()),
            false => write(&path, commit),
        }
    }

    /// Lets `name` of a snapshot point to a blob.
    pub(crate) fn link(&self, commit: &str, name: &str, blob: &Path) -> Result<(), HubError> {
        let (commit, name) = (safe(commit)?, safe(name)?);
        let path = self.folder.join("snapshots").join(commit).join(name);
        // Relative, so that neither a relative cache folder nor one that is moved leaves it dangling.
        let mut target: PathBuf = commit.components().chain(name.components()).map(|_| "..").collect();
        target.push("blobs");
        target.push(blob.file_name().expect("a blob is named by its sum"));
        let folder = path.parent().expect("a file in a snapshot has a folder");
        fs::create_dir_all(folder).map_err(HubError::disk(folder))?;
        if path.exists() {
            return Ok(());
        }
        // A dangling link of an interrupted run is in the way of a new one.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HubError::disk(&path)(error));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(&target, &path).map_err(HubError::disk(&path))
    }
}

/// A name from a hub's answer may not lead out of the cache.
fn safe(name: &str) -> Result<&Path, HubError> {
    let path = Path::new(name);
    match !name.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_))) {
        true => Ok(path),
        false => {
            Err(HubError::Transfer(format!("the hub names a file {name:?}, which leads out of the cache")))
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), HubError> {
    let folder = path.parent().expect("a reference has a folder");
    fs::create_dir_all(folder).map_err(HubError::disk(folder))?;
    fs::write(path, text).map_err(HubError::disk(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_hub_names_leads_out_of_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path(), "o/m");
        let sum = |hex: &str| Sum::Sha256(hex.to_owned());
        let blob = cache.blob(&sum("0abc")).unwrap();
        assert!(blob.starts_with(root.path()));
        for wrong in ["", "..", "../evil", "/etc/passwd", "a/../../evil"] {
            assert!(cache.blob(&sum(wrong)).is_err(), "a sum {wrong:?}");
            assert!(cache.link(wrong, "config.json", &blob).is_err(), "a commit {wrong:?}");
            assert!(cache.link("0abc", wrong, &blob).is_err(), "a file {wrong:?}");
            assert!(cache.set_reference(wrong, "0abc").is_err(), "a revision {wrong:?}");
            assert_eq!(cache.referenced_snapshot(wrong), None, "a revision {wrong:?}");
        }
    }
}
