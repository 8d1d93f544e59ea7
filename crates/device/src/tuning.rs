//! What was found fastest for each product: shared by the GPUs of a process, so that none times what another has, and
//! remembered on disk, so that the next start times nothing.
//!
//! The file has a line for each product, and is only believed whole: its first line names this program's version, its
//! last one is a hash of all others. The library takes the algorithms in it as they are.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::DeviceError;
use crate::dtype::DType;

/// Counts up when timing finds other things than before: what was found by an older way is found anew.
const METHOD: u32 = 1;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Our own kernel for few tokens.
    Skinny,
    /// The library, with this algorithm, as it encodes it.
    Library([u64; 8]),
}

/// Products with these in common share a choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The GPU's, its kernels' and the library's kind: `NVIDIA H200, 132 multiprocessors, sm_90a, cuBLASLt 130002`.
    pub machine: Arc<str>,
    /// Of weight and input: BF16 or F16.
    pub dtype: DType,
    /// The most rows of input.
    pub tokens: usize,
    /// Rows of the weight.
    pub rows: usize,
    /// Columns of the weight.
    pub columns: usize,
    /// The output is F32.
    pub out_is_float: bool,
    /// A bias is added.
    pub biased: bool,
}

/// What to do about a product nothing is known of at the GPU that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Another GPU found this, or the file has it.
    Take(Choice),
    /// Time it, and say what came of it.
    Time,
    /// Guess, until [`Tunings::changes`] has changed.
    Guess,
}

/// Choices found, and when more may be looked for.
pub struct Tunings {
    path: Option<PathBuf>,
    state: Mutex<State>,
    changes: AtomicU64,
}

#[derive(Default)]
struct State {
    known: HashMap<Key, Choice>,
    /// Being timed.
    claimed: HashSet<Key>,
    window: Window,
    /// Products found since the file was read.
    found: usize,
    /// Products somebody had to guess since the last window was closed.
    guessed: HashSet<Key>,
}

/// When products are timed.
#[derive(Clone, Copy, Default)]
enum Window {
    #[default]
    Closed,
    Until(Instant),
    Always,
}

impl Tunings {
    /// Those remembered at `path`. A file that is not there, is torn, or is another version's counts as empty: it is
    /// replaced. Nothing is timed outside of [`Tunings::open_window`].
    #[must_use]
    pub fn remembered(path: &Path) -> Self {
        let known = fs::read_to_string(path).ok().and_then(|text| parse(&text)).unwrap_or_default();
        Self {
            path: Some(path.to_path_buf()),
            state: Mutex::new(State { known, ..State::default() }),
            changes: AtomicU64::new(0),
        }
    }

    /// None; each product is timed when it is first met, and forgotten at the end.
    #[must_use]
    pub fn at_first_use() -> Self {
        let state = State { window: Window::Always, ..State::default() };
        Self { path: None, state: Mutex::new(state), changes: AtomicU64::new(0) }
    }

    /// From now on products nothing is known of are timed, for this long.
    pub fn open_window(&self, time: Duration) {
        let mut state = self.lock();
        state.window = Window::Until(Instant::now() + time);
        state.guessed.clear();
        drop(state);
        // Whoever guessed asks again.
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// A window was opened and not closed yet, whether or not its time is over.
    #[must_use]
    pub fn is_window_open(&self) -> bool {
        matches!(self.lock().window, Window::Until(_))
    }

    /// Nothing is timed any more.
    pub fn close_window(&self) {
        self.lock().window = Window::Closed;
    }

    /// Products that somebody had to guess since the last window was opened.
    #[must_use]
    pub fn guessed(&self) -> usize {
        self.lock().guessed.len()
    }

    /// Writes what was found to disk, beside what other processes wrote there; returns how many products are new.
    ///
    /// # Errors
    /// The file cannot be written: names it. What was found stays known.
    pub fn save(&self) -> Result<usize, DeviceError> {
        let mut state = self.lock();
        let (Some(path), found) = (&self.path, state.found) else { return Ok(0) };
        if found == 0 {
            return Ok(0);
        }
        let mut all = fs::read_to_string(path).ok().and_then(|text| parse(&text)).unwrap_or_default();
        all.extend(state.known.iter().map(|(key, choice)| (key.clone(), *choice)));
        write_whole(path, &print(&all)).map_err(|error| {
            DeviceError(format!("{} cannot be written, so the next start is slower: {error}", path.display()))
        })?;
        state.found = 0;
        Ok(found)
    }

    /// What to do about a product. `may_time` is false where it cannot be timed now.
    #[must_use]
    pub fn advise(&self, key: &Key, may_time: bool) -> Advice {
        let mut state = self.lock();
        if let Some(choice) = state.known.get(key) {
            return Advice::Take(*choice);
        }
        let open = match state.window {
            Window::Closed => false,
            Window::Until(end) => Instant::now() < end,
            Window::Always => true,
        };
        // Of several GPUs of a kind one times a product, and the others go on.
        if open && may_time && state.claimed.insert(key.clone()) {
            return Advice::Time;
        }
        state.guessed.insert(key.clone());
        Advice::Guess
    }

    /// What came of [`Advice::Time`].
    pub fn found(&self, key: Key, choice: Choice) {
        let mut state = self.lock();
        state.claimed.remove(&key);
        state.guessed.remove(&key);
        state.known.insert(key, choice);
        state.found += 1;
        drop(state);
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes when asking again may be answered otherwise.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first line.
fn heading() -> String {
    format!("phalanx {} matmul {METHOD}", env!("CARGO_PKG_VERSION"))
}

/// FNV-1a: tells a torn file, not a forged one.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn print(all: &HashMap<Key, Choice>) -> String {
    let line = |(key, choice): (&Key, &Choice)| {
        let Key { machine, tokens, rows, columns, .. } = key;
        let (element, biased) = (name(key.dtype), if key.biased { "biased" } else { "plain" });
        let out = if key.out_is_float { "f32" } else { element };
        let choice = match choice {
            Choice::Skinny => "skinny".to_owned(),
            Choice::Library(words) => words.map(|word| format!("{word:x}")).join("-"),
        };
        format!("{machine} | {element} {tokens} {rows} {columns} {out} {biased} {choice}\n")
    };
    let mut lines: Vec<String> = all.iter().map(line).collect();
    lines.sort();
    let text = heading() + "\n" + &lines.concat();
    let end = hash(&text);
    text + &format!("end {end:016x}\n")
}

/// All of a file, or nothing when anything in it is not as [`print`] writes it.
fn parse(text: &str) -> Option<HashMap<Key, Choice>> {
    let at = text.trim_end().rfind('\n')? + 1;
    let (body, end) = text.split_at(at);
    if end.trim_end() != format!("end {:016x}", hash(body)) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next() != Some(heading().as_str()) {
        return None;
    }
    lines.map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(Key, Choice)> {
    let (machine, rest) = line.split_once(" | ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let [element, tokens, rows, columns, out, biased, choice] = *words.as_slice() else { return None };
    let key = Key {
        machine: machine.into(),
        dtype: [DType::BF16, DType::F16].into_iter().find(|known| name(*known) == element)?,
        tokens: tokens.parse().ok()?,
        rows: rows.parse().ok()?,
        columns: columns.parse().ok()?,
        out_is_float: out == "f32",
        biased: biased == "biased",
    };
    if choice == "skinny" {
        return Some((key, Choice::Skinny));
    }
    let words = choice.split('-').map(|word| u64::from_str_radix(word, 16).ok());
    let words: Vec<u64> = words.collect::<Option<_>>()?;
    Some((key, Choice::Library(words.try_into().ok()?)))
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::F32 => "f32",
        DType::I32 => "i32",
    }
}

/// Whoever reads the file finds all of the old or all of the new one.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&part, text)?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tokens: usize) -> Key {
        Key {
            machine: "NVIDIA H200, 132 multiprocessors, sm_90a, cuBLASLt 130002".into(),
            dtype: DType::BF16,
            tokens,
            rows: 4608,
            columns: 3584,
            out_is_float: tokens == 8,
            biased: tokens == 16,
        }
    }

    fn algorithm(word: u64) -> Choice {
        Choice::Library([word, 0, 1, 2, u64::MAX, 4, 5, 6])
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("phalanx-tuning-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for a test");
        folder
    }

    #[test]
    fn what_was_found_is_known_after_a_restart_and_beside_what_others_found() {
        let folder = folder("restart");
        let path = folder.join("deep/matmul.txt");
        let (one, other) = (Tunings::remembered(&path), Tunings::remembered(&path));
        one.found(key(8), algorithm(7));
        other.found(key(16), Choice::Skinny);
        assert_eq!((one.save(), other.save(), other.save()), (Ok(1), Ok(1), Ok(0)));
        let again = Tunings::remembered(&path);
        assert_eq!(again.advise(&key(8), true), Advice::Take(algorithm(7)));
        assert_eq!(again.advise(&key(16), true), Advice::Take(Choice::Skinny));
        assert_eq!(again.advise(&key(24), true), Advice::Guess);
        assert_eq!(again.guessed(), 1);
        fs::remove_dir_all(folder).expect("it is there");
    }

    #[test]
    fn a_torn_or_foreign_file_counts_as_empty() {
        let known = HashMap::from([(key(8), algorithm(7)), (key(16), Choice::Skinny)]);
        let text = print(&known);
        assert_eq!(parse(&text), Some(known));
        for end in 0..text.len() - 1 {
            assert_eq!(parse(&text[..end]), None, "cut at {end}");
        }
        for (old, new) in [("phalanx ", "phalanx 9"), ("4608", "4609"), ("skinny", "skinni")] {
            assert_eq!(parse(&text.replacen(old, new, 1)), None, "{old} for {new}");
        }
        let foreign = text.replacen(" matmul ", " matmul 9", 1);
        let body = &foreign[..foreign.rfind("end").expect("it has an end")];
        assert_eq!(parse(&format!("{body}end {:016x}\n", hash(body))), None);
    }

    #[test]
    fn one_gpu_times_a_product_and_the_others_guess_until_it_is_found() {
        let folder = folder("window");
        fs::write(folder.join("file"), "").expect("a file for a test");
        // Nothing can be written below a file.
        let tunings = Tunings::remembered(&folder.join("file/matmul.txt"));
        assert_eq!(tunings.advise(&key(8), true), Advice::Guess);
        tunings.open_window(Duration::from_secs(3600));
        assert_eq!(tunings.advise(&key(8), false), Advice::Guess);
        assert_eq!(tunings.advise(&key(8), true), Advice::Time);
        assert_eq!(tunings.advise(&key(8), true), Advice::Guess);
        let before = tunings.changes();
        tunings.found(key(8), Choice::Skinny);
        assert_ne!(tunings.changes(), before);
        assert_eq!(tunings.advise(&key(8), true), Advice::Take(Choice::Skinny));
        tunings.close_window();
        assert_eq!(tunings.advise(&key(16), true), Advice::Guess);
        assert!(tunings.save().is_err_and(|error| error.0.contains("file/matmul.txt cannot be written")));
        fs::remove_dir_all(folder).expect("it is there");
    }
}
