//! What a GPU can do, by its name: the data of `cards.txt`, read once it is asked for.

use crate::layout::links::Wiring;

/// The file of cards; its head says what the columns are.
const CARDS: &str = include_str!("cards.txt");

/// One kind of GPU, as its data sheet has it or as it was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its name in `cards.txt`, or what its driver calls it.
    pub name: String,
    /// Bytes of its memory.
    pub memory_bytes: usize,
    /// Bytes a second between its memory and its cores.
    pub memory_bandwidth: f64,
    /// Operations a second in dense products of 16-bit matrices, a multiplication and an addition counted as two.
    pub tensor_flops: f64,
    /// How it reaches others of its kind in one machine.
    pub wiring: Wiring,
    /// Bytes a second over that, in one direction.
    pub link_bandwidth: f64,
}

/// What a GPU says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Hardware {
    /// What its driver calls it.
    pub name: String,
    /// Bytes of its memory.
    pub memory_bytes: usize,
    /// Bytes a second, by its memory's clock and width.
    pub memory_bandwidth: f64,
    /// Compute capability.
    pub capability: (u32, u32),
    /// How many it has.
    pub multiprocessors: usize,
    /// Their clock at most, in hertz.
    pub clock: f64,
}

impl Hardware {
    /// Operations a second of dense 16-bit products summed in float32: so many a clock on each multiprocessor of its
    /// generation, half of that on GeForce where the generation sells such.
    fn tensor_flops(&self) -> f64 {
        let of_each = match self.capability {
            (8, 0) => 2048.0,
            (8 | 12, _) if self.name.contains("GeForce") => 512.0,
            (8 | 12, _) => 1024.0,
            (9, _) => 4096.0,
            _ => 8192.0,
        };
        of_each * self.multiprocessors as f64 * self.clock
    }
}

impl Card {
    /// The card of this name. Case, punctuation and what every name has (`NVIDIA`, `GeForce`, `RTX`) do not matter,
    /// so a driver's name is found as well as `4090d`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let wanted = bare(name);
        all().find(|(names, _)| names.contains(&wanted)).map(|(_, card)| card)
    }

    /// A card at hand: by its name where the file has it, with the memory it says it has; otherwise by its sizes and
    /// clocks. `reaches` says whether each of its kind in the machine reaches the others' memory.
    #[must_use]
    pub fn at_hand(hardware: &Hardware, reaches: bool) -> Self {
        let known = Self::named(&hardware.name).unwrap_or_else(|| Self {
            name: hardware.name.clone(),
            memory_bytes: 0,
            memory_bandwidth: hardware.memory_bandwidth,
            tensor_flops: hardware.tensor_flops(),
            wiring: Wiring::Pcie,
            link_bandwidth: PCIE_BANDWIDTH,
        });
        let (wiring, link_bandwidth) = match (known.wiring, reaches) {
            (Wiring::NvLink | Wiring::Bridge, false) => (Wiring::Host, PCIE_BANDWIDTH),
            (Wiring::Pcie, false) => (Wiring::Host, known.link_bandwidth),
            // A driver may have been told to.
            (Wiring::Host, true) => (Wiring::Pcie, known.link_bandwidth),
            (wiring, _) => (wiring, known.link_bandwidth),
        };
        Self { memory_bytes: hardware.memory_bytes, wiring, link_bandwidth, ..known }
    }

    /// The names that [`Card::named`] knows, in the file's order, each card once.
    #[must_use]
    pub fn names() -> Vec<String> {
        all().map(|(_, card)| card.name).collect()
    }
}

/// Reads `4x4090D`, `8xH200` or `H200` (one of them).
///
/// # Errors
/// A text for people: no count, or a card that the file does not have, with those it has.
pub fn parse_gpus(text: &str) -> Result<(usize, Card), String> {
    let counted = text.split_once(['x', 'X', '*', '\u{d7}']);
    let (count, name) = match counted.and_then(|(count, name)| Some((count.trim().parse().ok()?, name))) {
        Some((count, name)) => (count, name),
        None => (1, text),
    };
    if name.trim().is_empty() || !(1..=MOST_GPUS).contains(&count) {
        return Err(format!("{text:?} is no machine such as 4x4090D: from 1 to {MOST_GPUS} GPUs"));
    }
    match Card::named(name) {
        Some(card) => Ok((count, card)),
        None => Err(format!(
            "{:?} is no card with known figures; those are {}",
            name.trim(),
            Card::names().join(", ")
        )),
    }
}

/// What PCI Express gives a card of which nothing else is known, in bytes a second and direction.
const PCIE_BANDWIDTH: f64 = 32e9;

/// GPUs of one machine, at most.
pub const MOST_GPUS: usize = 64;

/// A name without what says nothing.
fn bare(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    let mut name: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    for brand in ["nvidia", "geforce", "rtx"] {
        name = name.replace(brand, "");
    }
    name.replace("gb", "g")
}

/// Every card, with all its names as [`bare`] leaves them.
fn all() -> impl Iterator<Item = (Vec<String>, Card)> {
    let lines = CARDS.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| read(line).expect("the file of cards is well formed, which a test holds"))
}

fn read(line: &str) -> Option<(Vec<String>, Card)> {
    let mut fields = line.split_ascii_whitespace();
    let name = fields.next()?;
    let mut number = || fields.next()?.parse::<f64>().ok();
    let (memory, bandwidth, tensor) = (number()?, number()?, number()?);
    let wiring = match fields.next()? {
        "nvlink" => Wiring::NvLink,
        "bridge" => Wiring::Bridge,
        "pcie" => Wiring::Pcie,
        "host" => Wiring::Host,
        _ => return None,
    };
    let link_bandwidth = fields.next()?.parse::<f64>().ok()? * 1e9;
    let _sources = fields.next()?;
    let others = fields.next().unwrap_or_default().split(',').filter(|other| !other.is_empty());
    let names = std::iter::once(name).chain(others).map(bare).collect();
    let card = Card {
        name: name.to_owned(),
        memory_bytes: (memory as usize) << 20,
        memory_bandwidth: bandwidth * 1e9,
        tensor_flops: tensor * 1e12,
        wiring,
        link_bandwidth,
    };
    Some((names, card))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_and_no_name_stands_for_two_cards() {
        let mut seen = std::collections::HashSet::new();
        let head: Vec<&str> = CARDS.lines().filter(|line| line.starts_with('#')).collect();
        for line in CARDS.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (names, card) = read(line).unwrap_or_else(|| panic!("{line}"));
            let sources = line.split_ascii_whitespace().nth(6).unwrap();
            let is_told = |source: &str| {
                head.iter().any(|line| line.split_ascii_whitespace().any(|word| word == source))
            };
            assert!(sources.split(',').all(is_told), "{line}: the head explains each source");
            assert!(1e11 < card.memory_bandwidth && card.memory_bandwidth < 1e13, "{line}");
            assert!(5e13 < card.tensor_flops && card.tensor_flops < 5e15, "{line}");
            assert!(20 << 30 < card.memory_bytes && card.memory_bytes < 300 << 30, "{line}");
            for name in names {
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
    }

    #[test]
    fn people_and_drivers_name_the_same_cards() {
        let same = [
            ("4090d", "NVIDIA GeForce RTX 4090 D"),
            ("4090", "NVIDIA GeForce RTX 4090"),
            ("H200", "NVIDIA H200"),
            ("A100-80G", "NVIDIA A100-SXM4-80GB"),
            ("A100-80G-PCIe", "NVIDIA A100 80GB PCIe"),
            ("A100-40G", "NVIDIA A100-SXM4-40GB"),
            ("H100", "NVIDIA H100 80GB HBM3"),
            ("H100-PCIe", "NVIDIA H100 PCIe"),
            ("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"),
            ("A800", "NVIDIA A800-SXM4-80GB"),
        ];
        for (people, driver) in same {
            assert!(Card::named(people).is_some(), "{people}");
            assert_eq!(Card::named(people), Card::named(driver), "{people}");
        }
        assert_eq!(Card::named("NVIDIA GeForce GTX 1080"), None);
    }

    /// What drivers say, against the data sheets: sizes and clocks give a card's figures within a tenth.
    #[test]
    fn an_unknown_card_is_known_by_its_sizes_and_clocks() {
        let known = [
            ("H200", (9, 0), 132, 1.83e9),
            ("A100-80G", (8, 0), 108, 1.41e9),
            ("L40S", (8, 9), 142, 2.52e9),
            ("A10", (8, 6), 72, 1.695e9),
            ("B200", (10, 0), 148, 1.85e9),
        ];
        for (name, capability, multiprocessors, clock) in known {
            let listed = Card::named(name).unwrap();
            let hardware = Hardware {
                name: "NVIDIA Unheard-of".to_owned(),
                memory_bytes: 1 << 35,
                memory_bandwidth: 1e12,
                capability,
                multiprocessors,
                clock,
            };
            let card = Card::at_hand(&hardware, true);
            let ratio = card.tensor_flops / listed.tensor_flops;
            assert!((0.9..1.1).contains(&ratio), "{name}: {ratio}");
            assert_eq!((card.memory_bytes, card.wiring), (1 << 35, Wiring::Pcie));
        }
        let geforce = Hardware {
            name: "NVIDIA GeForce RTX 4090".to_owned(),
            memory_bytes: 25_000_000_000,
            memory_bandwidth: 1e12,
            capability: (8, 9),
            multiprocessors: 128,
            clock: 2.52e9,
        };
        let listed = Card::named("4090").unwrap();
        assert!((geforce.tensor_flops() / listed.tensor_flops - 1.0).abs() < 0.02);
        assert_eq!(Card::at_hand(&geforce, false), Card { memory_bytes: 25_000_000_000, ..listed });
        assert_eq!(Card::at_hand(&geforce, true).wiring, Wiring::Pcie);
        let lonely = Hardware { name: "NVIDIA H200".to_owned(), ..geforce };
        assert_eq!(Card::at_hand(&lonely, false).wiring, Wiring::Host);
        assert_eq!(Card::at_hand(&lonely, true).wiring, Wiring::NvLink);
    }

    #[test]
    fn machines_are_read() {
        let read = |text| parse_gpus(text).map(|(count, card)| (count, card.name));
        assert_eq!(read("4x4090D"), Ok((4, "4090D".to_owned())));
        assert_eq!(read("8xH200"), Ok((8, "H200".to_owned())));
        assert_eq!(read("2xA100-80G"), Ok((2, "A100-80G".to_owned())));
        assert_eq!(read("h200"), Ok((1, "H200".to_owned())));
        // A name may have an x of its own.
        assert_eq!(read("A100-SXM4-80GB"), Ok((1, "A100-80G".to_owned())));
        assert_eq!(read("4\u{d7}4090D"), Ok((4, "4090D".to_owned())));
        assert!(read("").unwrap_err().contains("no machine such as 4x4090D"));
        for wrong in ["", "0xH200", "65xH200", "2x", "2xVoodoo"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read("2xVoodoo").unwrap_err().contains("4090D, 5090"));
    }
}
