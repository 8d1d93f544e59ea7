//! GPUs in `/metrics`: what NVML tells of each card that this server may use, under names of the house.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use phalanx_device::Growth;
use phalanx_device::facts::{GpuFacts, Known, Traffic};
use phalanx_server::FamilyKind::{Counter, Gauge};
use phalanx_server::{Families, Family, FamilyKind, Series};

use crate::cards;
use crate::launch::Launched;

/// Figures are read no more often than this, however many scrape.
const FRESH: Duration = Duration::from_secs(1);

/// What finds a figure of a card; none where the card does not tell.
type Figure = fn(&GpuFacts) -> Option<f64>;

/// The GPUs' figures, when the server runs on GPUs and the driver's library tells them.
pub(crate) fn watch(launched: &Launched) -> Option<Families> {
    if !launched.on_gpus {
        return None;
    }
    let read = cards::watch()?;
    Some(kept(move || families(&read())))
}

/// What ranks on GPUs have allocated since the server was ready, where there are any: nothing, if all was sized well.
pub(crate) fn grown(launched: &Launched) -> Option<Families> {
    let growth = launched.growth.clone();
    (!growth.is_empty()).then(|| -> Families { Box::new(move || grown_families(&growth)) })
}

fn grown_families(growth: &[(usize, Arc<Growth>)]) -> Vec<Family> {
    let family = |name, help, figure: fn(&Growth) -> u64| {
        // Ranks that share a GPU are one series.
        let mut series: Vec<Series> = Vec::new();
        for (ordinal, growth) in growth {
            let (labels, value) = (vec![("gpu", ordinal.to_string())], figure(growth) as f64);
            match series.iter_mut().find(|of| of.labels == labels) {
                Some(of) => of.value += value,
                None => series.push(Series { labels, value }),
            }
        }
        Family { name, help, kind: Counter, series }
    };
    vec![
        family(
            "phalanx:gpu_late_allocations_total",
            "Allocations since the server was ready; --log debug tells what for.",
            Growth::allocations,
        ),
        family("phalanx:gpu_late_allocated_bytes_total", "Their bytes.", Growth::bytes),
    ]
}

/// What was read last, read anew when it is old. While one scrape reads, the others are given what there is: a driver
/// that does not come back holds one thread, not all.
fn kept(read: impl Fn() -> Vec<Family> + Send + Sync + 'static) -> Families {
    let last: Mutex<(Option<Instant>, Vec<Family>)> = Mutex::new((None, Vec::new()));
    let reading = Mutex::new(());
    Box::new(move || {
        // Neither lock guards anything that a panic could leave half done.
        let last = || last.lock().unwrap_or_else(PoisonError::into_inner);
        let _reading = match reading.try_lock() {
            Ok(reading) => reading,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return last().1.clone(),
        };
        if last().0.is_none_or(|when| FRESH <= when.elapsed()) {
            let families = read();
            *last() = (Some(Instant::now()), families);
        }
        last().1.clone()
    })
}

/// Every figure of every card that this program can use. A figure that no card tells is absent, not zero.
fn families(gpus: &[GpuFacts]) -> Vec<Family> {
    let used: Vec<(usize, &GpuFacts)> = gpus.iter().filter_map(|gpu| Some((gpu.ordinal?, gpu))).collect();
    let mut families = Vec::new();
    for (name, help, kind, figure) in CARD.into_iter().chain(LINKS) {
        let of = |(ordinal, gpu): &(usize, &GpuFacts)| {
            let uuid = gpu.uuid.clone().unwrap_or_default();
            Some(Series { labels: vec![("gpu", ordinal.to_string()), ("uuid", uuid)], value: figure(gpu)? })
        };
        families.push(Family { name, help, kind, series: used.iter().filter_map(of).collect() });
    }
    families.extend([info(&used), slowed(&used)]);
    families.retain(|family| !family.series.is_empty());
    families
}

/// A family's name and help, what kind of figure it is, and where it is found.
type Row = (&'static str, &'static str, FamilyKind, Figure);

fn number(figure: &Known<f64>) -> Option<f64> {
    figure.as_ref().ok().copied()
}

fn sent(traffic: &Known<Traffic>) -> Option<f64> {
    traffic.as_ref().ok().map(|traffic| traffic.sent as f64)
}

fn received(traffic: &Known<Traffic>) -> Option<f64> {
    traffic.as_ref().ok().map(|traffic| traffic.received as f64)
}

/// How the card itself stands.
const CARD: [Row; 13] = [
    ("phalanx:gpu_memory_total_bytes", "Memory of the card.", Gauge, |gpu| {
        Some(gpu.memory.as_ref().ok()?.total as f64)
    }),
    ("phalanx:gpu_memory_used_bytes", "Memory that processes hold.", Gauge, |gpu| {
        Some(gpu.memory.as_ref().ok()?.used as f64)
    }),
    ("phalanx:gpu_memory_free_bytes", "Memory that nobody holds.", Gauge, |gpu| {
        Some(gpu.memory.as_ref().ok()?.free as f64)
    }),
    ("phalanx:gpu_utilization_ratio", "Share of time in which a kernel ran.", Gauge, |gpu| {
        Some(gpu.load.as_ref().ok()?.compute)
    }),
    ("phalanx:gpu_memory_utilization_ratio", "Share of time in which memory was accessed.", Gauge, |gpu| {
        Some(gpu.load.as_ref().ok()?.memory)
    }),
    ("phalanx:gpu_power_watts", "Power drawn.", Gauge, |gpu| number(&gpu.power_watts)),
    ("phalanx:gpu_power_limit_watts", "Power it may draw.", Gauge, |gpu| number(&gpu.power_limit_watts)),
    ("phalanx:gpu_temperature_celsius", "Of the chip.", Gauge, |gpu| number(&gpu.temperature)),
    ("phalanx:gpu_sm_clock_hertz", "Clock of the multiprocessors.", Gauge, |gpu| number(&gpu.sm_clock)),
    ("phalanx:gpu_memory_clock_hertz", "Clock of the memory.", Gauge, |gpu| number(&gpu.memory_clock)),
    (
        "phalanx:gpu_ecc_corrected_total",
        "Memory errors mended since the driver was loaded.",
        Counter,
        |gpu| Some(gpu.ecc.as_ref().ok()?.corrected as f64),
    ),
    ("phalanx:gpu_ecc_uncorrected_total", "Memory errors not mended.", Counter, |gpu| {
        Some(gpu.ecc.as_ref().ok()?.uncorrected as f64)
    }),
    ("phalanx:gpu_xid_total", "Critical errors (Xid) since this server started.", Counter, |gpu| {
        gpu.xids.as_ref().ok().map(|count| *count as f64)
    }),
];

/// What goes over its links.
const LINKS: [Row; 7] = [
    ("phalanx:gpu_pcie_generation", "Of the link to the host, as it runs now.", Gauge, |gpu| {
        Some(f64::from(gpu.pcie.as_ref().ok()?.generation))
    }),
    ("phalanx:gpu_pcie_lanes", "Of the link to the host.", Gauge, |gpu| {
        Some(f64::from(gpu.pcie.as_ref().ok()?.width))
    }),
    ("phalanx:gpu_pcie_sent_bytes_per_second", "To the host, just now.", Gauge, |gpu| sent(&gpu.pcie_rate)),
    ("phalanx:gpu_pcie_received_bytes_per_second", "From the host, just now.", Gauge, |gpu| {
        received(&gpu.pcie_rate)
    }),
    ("phalanx:gpu_nvlinks_active", "NVLinks that are up.", Gauge, |gpu| {
        let active = gpu.nvlinks.iter().filter(|link| link.active).count();
        Some(active as f64).filter(|_| !gpu.nvlinks.is_empty())
    }),
    ("phalanx:gpu_nvlink_sent_bytes_total", "Over all NVLinks.", Counter, |gpu| sent(&gpu.nvlink_traffic)),
    ("phalanx:gpu_nvlink_received_bytes_total", "Over all NVLinks.", Counter, |gpu| {
        received(&gpu.nvlink_traffic)
    }),
];

/// Which card is which.
fn info(used: &[(usize, &GpuFacts)]) -> Family {
    let text = |known: &Known<String>| known.clone().unwrap_or_default();
    let of = |(ordinal, gpu): &(usize, &GpuFacts)| Series {
        labels: vec![
            ("gpu", ordinal.to_string()),
            ("uuid", text(&gpu.uuid)),
            ("name", text(&gpu.name)),
            ("pci", text(&gpu.pci)),
        ],
        value: 1.0,
    };
    Family {
        name: "phalanx:gpu_info",
        help: "1 for each card, with its name.",
        kind: Gauge,
        series: used.iter().map(of).collect(),
    }
}

/// One series for each reason that holds a clock down; a card that runs as it can has none.
fn slowed(used: &[(usize, &GpuFacts)]) -> Family {
    let of = |(ordinal, gpu): &(usize, &GpuFacts)| {
        let (ordinal, uuid) = (ordinal.to_string(), gpu.uuid.clone().unwrap_or_default());
        let series = |reason: &&'static str| Series {
            labels: vec![("gpu", ordinal.clone()), ("uuid", uuid.clone()), ("reason", (*reason).to_owned())],
            value: 1.0,
        };
        gpu.slowed_by.iter().flatten().map(series).collect::<Vec<_>>()
    };
    Family {
        name: "phalanx:gpu_slowed",
        help: "1 for each reason that holds the clock down.",
        kind: Gauge,
        series: used.iter().flat_map(of).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::doctor::gpus::tests::well;

    #[test]
    fn cards_that_are_used_are_shown_and_what_is_not_told_is_absent() {
        let hidden = GpuFacts { ordinal: None, ..well(0) };
        let second = GpuFacts {
            ordinal: Some(0),
            slowed_by: Ok(vec!["heat"]),
            xids: Err("this GPU does not tell".to_owned()),
            ..well(1)
        };
        let families = families(&[hidden, second]);
        let of = |name: &str| families.iter().find(|family| family.name == name);
        let labels = vec![("gpu", "0".to_owned()), ("uuid", "GPU-1".to_owned())];
        let power = of("phalanx:gpu_power_watts").unwrap();
        assert_eq!(power.series, [Series { labels, value: 75.5 }]);
        assert_eq!(of("phalanx:gpu_nvlink_sent_bytes_total").unwrap().series[0].value, 1024.0);
        assert_eq!(of("phalanx:gpu_pcie_received_bytes_per_second").unwrap().series[0].value, 7e9);
        assert_eq!(of("phalanx:gpu_slowed").unwrap().series[0].labels[2], ("reason", "heat".to_owned()));
        for absent in ["phalanx:gpu_xid_total", "phalanx:gpu_memory_clock_hertz"] {
            assert_eq!(of(absent), None);
        }
        assert!(super::families(&[]).is_empty());
    }

    #[test]
    fn ranks_that_share_a_gpu_are_counted_together() {
        let ranks = [0, 1, 0].map(|ordinal| (ordinal, Arc::new(Growth::default())));
        let families = super::grown_families(&ranks);
        let labels = |gpu: &str| vec![("gpu", gpu.to_owned())];
        let none = |gpu| Series { labels: labels(gpu), value: 0.0 };
        assert_eq!(families[0].series, [none("0"), none("1")]);
    }

    #[test]
    fn a_scrape_while_another_reads_is_given_what_there_is() {
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Mutex::new(ends);
        let families = kept(move || {
            begun.send(()).unwrap();
            ends.lock().unwrap().recv().unwrap();
            super::families(&[well(0)])
        });
        std::thread::scope(|scope| {
            let first = scope.spawn(&families);
            begins.recv().unwrap();
            assert_eq!(families(), [], "nothing was read yet, and nothing waits for it");
            end.send(()).unwrap();
            assert!(!first.join().unwrap().is_empty());
        });
    }
}
