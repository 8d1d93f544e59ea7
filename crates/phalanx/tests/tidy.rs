//! Rules of the house that no compiler holds: who may depend on whom, how long a file may be, which words we do not use.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Who may depend on whom. Cargo refuses cycles; this refuses short cuts.
const MAY_DEPEND_ON: [(&str, &[&str]); 10] = [
    ("scheduler", &[]),
    ("text", &[]),
    ("device", &[]),
    ("hub", &[]),
    ("model", &["device"]),
    ("worker", &["scheduler", "device", "model"]),
    ("engine", &["scheduler", "text"]),
    ("server", &["engine", "text"]),
    ("bench", &["engine"]),
    ("phalanx", &["scheduler", "text", "device", "model", "worker", "engine", "server", "bench", "hub"]),
];

/// Crates that one of these may not pull in, because of what they are for.
const MAY_NOT_USE: [(&str, &[&str]); 7] = [
    ("scheduler", &["tokio", "tracing", "rayon", "serde"]),
    ("text", &["tokio"]),
    ("device", &["tokio", "serde"]),
    ("model", &["tokio", "axum", "ureq"]),
    ("worker", &["tokio", "axum", "phalanx-text", "phalanx-engine"]),
    ("engine", &["tokio", "axum", "serde_json", "phalanx-worker", "phalanx-device"]),
    ("server", &["phalanx-scheduler", "phalanx-device", "phalanx-model", "phalanx-worker"]),
];

/// The few files in which a cargo feature may make a difference.
const FEATURE_FILES: [&str; 3] =
    ["crates/device/src/lib.rs", "crates/device/build.rs", "crates/phalanx/src/main.rs"];

const LONGEST_FILE: usize = 600;

/// Words with a better one; see CONTRIBUTING.md.
const BANNED_NAMES: [&str; 10] = [
    "utils",
    "helpers",
    "misc",
    "manager",
    "cur_len",
    "past_len",
    "gpu_num",
    "seq_group",
    "input_metadata",
    "model_runner",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every file below `folder` with one of these extensions.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            found.extend(files(&path, extensions));
        } else if extensions.contains(&extension) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    let root = root();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(&root).unwrap().display().to_string(), text)
    };
    files(&root.join("crates"), &["rs", "cu", "cuh", "js", "css", "html"]).into_iter().map(read).collect()
}

/// Fails with all violations at once.
fn assert_none(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}

/// The names in a manifest's `[dependencies]`.
fn dependencies(krate: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join("crates").join(krate).join("Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn arrows_point_down_only() {
    let mut violations = Vec::new();
    for (krate, allowed) in MAY_DEPEND_ON {
        for dependency in dependencies(krate) {
            if let Some(inner) = dependency.strip_prefix("phalanx-")
                && !allowed.contains(&inner)
            {
                violations.push(format!("{krate} depends on {inner}"));
            }
        }
    }
    for (krate, forbidden) in MAY_NOT_USE {
        let used = dependencies(krate).into_iter().filter(|used| forbidden.contains(&used.as_str()));
        violations.extend(used.map(|used| format!("{krate} uses {used}")));
    }
    let crates = fs::read_dir(root().join("crates")).unwrap().count();
    assert_eq!(crates, MAY_DEPEND_ON.len(), "every crate stands in the table");
    assert_none("ARCHITECTURE.md says who may depend on whom", &violations);
}

#[test]
fn files_are_short_enough_to_be_read() {
    let long = sources().into_iter().filter(|(_, text)| LONGEST_FILE < text.lines().count());
    let long: Vec<String> =
        long.map(|(path, text)| format!("{path}: {} lines", text.lines().count())).collect();
    assert_none(&format!("no file has more than {LONGEST_FILE} lines"), &long);
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent =
        sources().into_iter().filter(|(path, text)| path.ends_with(".rs") && !text.starts_with("//!"));
    assert_none(
        "a module opens with one sentence of purpose",
        &silent.map(|(path, _)| path).collect::<Vec<_>>(),
    );
}

/// Lines of Rust outside comments and tests folders, with their place.
fn code_lines() -> Vec<(String, String)> {
    let own = file!();
    let mut lines = Vec::new();
    for (path, text) in
        sources().into_iter().filter(|(path, _)| path.ends_with(".rs") && !own.ends_with(path.as_str()))
    {
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            lines.push((format!("{path}:{}", number + 1), line.to_owned()));
        }
    }
    lines
}

#[test]
fn features_make_a_difference_in_few_files() {
    let elsewhere = code_lines().into_iter().filter(|(place, line)| {
        let named = FEATURE_FILES.iter().any(|file| place.starts_with(file)) || place.contains("/examples/");
        (line.contains("cfg(feature") || line.contains("cfg(not(feature")) && !named
    });
    assert_none("cfg(feature) stands in few files", &elsewhere.map(|(place, _)| place).collect::<Vec<_>>());
}

#[test]
fn the_environment_is_read_by_arguments_only() {
    let reads = code_lines().into_iter().filter(|(place, line)| {
        let allowed = place.contains("/tests/") || place.contains("/examples/") || place.contains("build.rs");
        (line.contains("env::var") || line.contains("env::args")) && !allowed
    });
    assert_none("only args.rs reads the environment", &reads.map(|(place, _)| place).collect::<Vec<_>>());
}

#[test]
fn names_come_from_the_vocabulary() {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut violations = Vec::new();
    // Attributes give reasons in plain English, where these words are only words.
    for (place, line) in code_lines().into_iter().filter(|(_, line)| !line.starts_with('#')) {
        for word in line.split(|c| !is_word(c)).filter(|word| BANNED_NAMES.contains(word)) {
            violations.push(format!("{place}: {word}"));
        }
    }
    assert_none("CONTRIBUTING.md has the vocabulary", &violations);
}

#[test]
fn re_exports_stand_in_lib_rs() {
    let elsewhere = code_lines()
        .into_iter()
        .filter(|(place, line)| line.trim_start().starts_with("pub use ") && !place.contains("/lib.rs:"));
    assert_none("no `pub use` outside lib.rs", &elsewhere.map(|(place, _)| place).collect::<Vec<_>>());
}

#[test]
fn nothing_is_ignored_and_nothing_sleeps() {
    let lazy = code_lines().into_iter().filter(|(place, line)| {
        line.contains("#[ignore") || (place.contains("/tests/") && line.contains("thread::sleep"))
    });
    assert_none(
        "tests run, and wait for events rather than time",
        &lazy.map(|(place, _)| place).collect::<Vec<_>>(),
    );
}

#[test]
fn the_documents_name_files_that_exist() {
    let mut violations = Vec::new();
    for document in ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for name in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.starts_with("crates/") || name.starts_with("scripts/"))
        {
            let path = name.split(['#', ' ', ':']).next().unwrap_or(name);
            if !path.contains(['*', '{']) && !root().join(path).exists() {
                violations.push(format!("{document} names {path}"));
            }
        }
    }
    assert_none("documents stay true", &violations);
}
