//! What was found out about links, remembered by the GPUs' uuids and how they were told to add up: a small file that is believed whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use phalanx_model::layout::links::AllReduceTimes;
use serde_json::{Map, Value, json};

use crate::layout::auto::Probed;

/// Counts up when probing finds other things than before. Another version of this program probes anew as well.
const METHOD: u64 = 4;

/// What is remembered `of` these GPUs, told to add up in some way; none when nothing is, or the file is of another version, torn or not ours.
pub(crate) fn load(file: &Path, of: &[String]) -> Option<Probed> {
    read(&fs::read_to_string(file).ok()?, of)
}

/// Remembers `probed`, and what the file has of other GPUs.
///
/// # Errors
/// The folder cannot be written to.
pub(crate) fn store(file: &Path, of: &[String], probed: &Probed) -> io::Result<()> {
    let before = fs::read_to_string(file).unwrap_or_default();
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Whoever reads meanwhile has the old file or the new one, never a part.
    let fresh = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&fresh, written(&before, of, probed))?;
    fs::rename(&fresh, file)
}

fn read(text: &str, of: &[String]) -> Option<Probed> {
    probed(entries(text)?.get(&key(of))?)
}

/// The new text of the file.
fn written(before: &str, of: &[String], probed: &Probed) -> String {
    let mut entries = entries(before).unwrap_or_default();
    let groups = probed.all_reduce.iter().map(|group| json!({"ranks": group.ranks, "us": group.times}));
    let entry = json!({
        "reaches": probed.reaches,
        "write_bandwidth": probed.write_bandwidth,
        "all_reduce": groups.collect::<Vec<_>>(),
    });
    entries.insert(key(of), entry);
    let whole = json!({"version": version(), "links": entries});
    serde_json::to_string_pretty(&whole).expect("plain values have a text")
}

/// What the file has, by GPUs, when this version wrote it.
fn entries(text: &str) -> Option<Map<String, Value>> {
    let whole: Value = serde_json::from_str(text).ok()?;
    let ours = whole["version"] == version();
    whole["links"].as_object().filter(|_| ours).cloned()
}

fn version() -> Value {
    json!(format!("{} {METHOD}", env!("CARGO_PKG_VERSION")))
}

/// The order of GPUs counts: links are between places.
fn key(of: &[String]) -> String {
    of.join(",")
}

fn probed(entry: &Value) -> Option<Probed> {
    let positive = |value: &Value| value.as_f64().filter(|number| 0.0 < *number);
    let group = |group: &Value| {
        let times = group["us"].as_array()?.iter();
        let times: Vec<(usize, f64)> = times
            .map(|pair| Some((usize::try_from(pair[0].as_u64()?).ok()?, positive(&pair[1])?)))
            .collect::<Option<_>>()?;
        let ascending = times.is_sorted_by(|a, b| a.0 < b.0) && !times.is_empty();
        let ranks = usize::try_from(group["ranks"].as_u64()?).ok()?;
        ascending.then_some(AllReduceTimes { ranks, times })
    };
    Some(Probed {
        reaches: entry["reaches"].as_bool()?,
        write_bandwidth: match &entry["write_bandwidth"] {
            Value::Null => None,
            number => Some(positive(number)?),
        },
        all_reduce: entry["all_reduce"].as_array()?.iter().map(group).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Probed {
        let times = vec![(7168, 5.0), (1 << 20, 8.5)];
        Probed {
            reaches: true,
            write_bandwidth: Some(315e9),
            all_reduce: vec![AllReduceTimes { ranks: 2, times }],
        }
    }

    fn uuids(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_probed_is_remembered_by_uuid() {
        let (two, others) = (uuids(&["GPU-a", "GPU-b"]), uuids(&["GPU-c", "GPU-d"]));
        let apart = Probed { reaches: false, write_bandwidth: None, all_reduce: Vec::new() };
        let text = written(&written("", &two, &example()), &others, &apart);
        assert_eq!(read(&text, &two), Some(example()));
        assert_eq!(read(&text, &others), Some(apart.clone()));
        assert_eq!(read(&text, &uuids(&["GPU-a"])), None);
        assert_eq!(read(&text, &uuids(&["GPU-b", "GPU-a"])), None);
        assert_eq!(read(&written(&text, &two, &apart), &two), Some(apart));
    }

    #[test]
    fn a_stale_a_torn_and_a_foreign_file_are_ignored() {
        let two = uuids(&["GPU-a", "GPU-b"]);
        let text = written("", &two, &example());
        for cut in 0..text.len() {
            assert_eq!(read(&text[..cut], &two), None, "cut at {cut}");
        }
        let foreign = [
            text.replace(env!("CARGO_PKG_VERSION"), "0.0.0"),
            text.replace("true", "1"),
            text.replace("5.0", "-5.0"),
            text.replace("1048576", "7168"),
            "[]".to_owned(),
        ];
        for foreign in foreign {
            assert_eq!(read(&foreign, &two), None, "{foreign}");
            // And is written over.
            assert_eq!(read(&written(&foreign, &two, &example()), &two), Some(example()));
        }
    }
}
