//! What `doctor` says of GPUs, their driver, libraries and links: from plain data, so that every line can be tested.

use phalanx_device::architecture::{self, Architecture};
use phalanx_device::facts::{DriverFacts, GpuFacts, Holder, Known, LibraryFacts, LinkFacts};
use serde_json::{Value, json};

use super::finding::Finding;
use super::sums::{self, Sums};
use crate::plan::gib;

/// A card of which others hold more than this share is worth a word.
const OTHERS_SHARE: f64 = 0.05;
/// What the driver keeps in use on an idle card is nobody's.
const IDLE_BYTES: u64 = 1 << 30;

/// Everything about GPUs, as far as it could be learned.
pub(crate) struct Survey {
    /// What this binary's kernels were built for.
    pub(crate) built: Vec<Architecture>,
    /// GPUs that this binary can use, or why it can use none.
    pub(crate) usable: Known<usize>,
    /// What the driver's own library tells; an error when it is not there.
    pub(crate) driver: Known<DriverFacts>,
    /// The same of each GPU.
    pub(crate) gpus: Known<Vec<GpuFacts>>,
    pub(crate) libraries: Vec<LibraryFacts>,
    pub(crate) links: Vec<LinkFacts>,
    pub(crate) sums: Known<Sums>,
}

/// All lines. `cards` are NVIDIA's GPUs on the machine's bus, seen without any driver; `survey` is none in a binary
/// that was built without GPUs.
pub(crate) fn findings(cards: usize, survey: Option<&Survey>) -> Vec<Finding> {
    let Some(survey) = survey else {
        return vec![match cards {
            0 => Finding::ok(
                "gpu",
                "none here, and this binary was built without GPUs: it serves from the CPU",
            ),
            _ => Finding::warn(
                "gpu",
                format!(
                    "{cards} of NVIDIA's here, but this binary was built without GPUs and serves from the CPU"
                ),
                "build it with `cargo build --release --features cuda` where nvcc is found",
            ),
        }];
    };
    let mut findings = vec![kernels(&survey.built), driver(cards, survey)];
    if survey.usable.is_ok() || survey.gpus.is_ok() {
        let gpus = survey.gpus.as_deref().unwrap_or_default();
        findings.extend(gpus.iter().flat_map(|card| gpu(card, &survey.built)));
        findings.extend(survey.libraries.iter().map(library));
        findings.extend(links(&survey.links));
        findings.extend(sums::findings(&survey.sums));
    }
    findings
}

/// What the kernels were built for.
fn kernels(built: &[Architecture]) -> Finding {
    let names: Vec<String> = built.iter().map(ToString::to_string).collect();
    Finding::ok("kernels", format!("built for {}", architecture::names(built)))
        .with(json!({"built_for": names}))
}

/// Whether this binary's kernels run on a GPU, and with all that it has.
fn served(topic: &str, built: &[Architecture], capability: (u32, u32)) -> Option<Finding> {
    let fix = architecture::remedy(capability);
    let Some(serving) = Architecture::serving(built, capability) else {
        return Some(Finding::fail(topic, architecture::unserved(built, capability), fix));
    };
    let lacks = serving.lacks(capability)?;
    Some(Finding::warn(topic, format!("it runs kernels of {serving}, not of its own: {lacks}"), fix))
}

fn driver(cards: usize, survey: &Survey) -> Finding {
    let version = match &survey.driver {
        Ok(facts) => {
            let cuda =
                facts.cuda.as_ref().map_or_else(Clone::clone, |(major, minor)| format!("{major}.{minor}"));
            format!("{}, CUDA {cuda}", facts.version.as_ref().unwrap_or_else(|reason| reason))
        }
        Err(reason) => format!("unknown ({reason})"),
    };
    let data =
        json!({"driver": version, "usable_gpus": survey.usable.as_ref().ok(), "gpus_on_the_bus": cards});
    match (&survey.usable, cards) {
        (Ok(0), _) => Finding::warn(
            "driver",
            format!("{version}; it shows this program no GPU"),
            "look at CUDA_VISIBLE_DEVICES and, in a container, at --gpus",
        ),
        (Ok(_), _) => match &survey.driver {
            Ok(_) => Finding::ok("driver", version),
            Err(reason) => Finding::warn(
                "driver",
                format!("GPUs can be used, but not watched: {reason}"),
                "make libnvidia-ml.so.1 of the driver visible; in a container, allow the driver capability `utility`",
            ),
        },
        (Err(_), 0) if survey.driver.is_err() => {
            Finding::ok("gpu", "none here, and no driver: this machine serves from its CPU")
        }
        (Err(reason), _) => Finding::fail(
            "driver",
            format!("{version}; GPUs cannot be used: {reason}"),
            "install NVIDIA's driver 580 or newer; in a container, start it with --gpus all",
        ),
    }
    .with(data)
}

/// A GPU's own line, and one for each thing that is wrong with it.
fn gpu(gpu: &GpuFacts, built: &[Architecture]) -> Vec<Finding> {
    let topic = format!("gpu {}", gpu.index);
    let mut findings = vec![Finding::ok(topic.as_str(), describe(gpu)).with(as_json(gpu))];
    let mut add = |finding: Option<Finding>| findings.extend(finding);
    add(gpu.capability.as_ref().ok().and_then(|capability| served(&topic, built, *capability)));
    add(others(&topic, gpu));
    add(gpu
        .slowed_by
        .as_ref()
        .ok()
        .filter(|reasons| reasons.iter().any(|reason| *reason != "power limit"))
        .map(|reasons| {
            Finding::warn(
                topic.as_str(),
                format!("its clock is held down: {}", reasons.join(", ")),
                "look at cooling and power supply; `nvidia-smi -q -d PERFORMANCE` says more",
            )
        }));
    add(gpu.pcie.as_ref().ok().filter(|pcie| pcie.width < pcie.max_width).map(|pcie| {
        Finding::warn(
            topic.as_str(),
            format!("{} of {} PCIe lanes are in use", pcie.width, pcie.max_width),
            "reseat the card, or put it into a slot with all lanes: loading and host copies are slower",
        )
    }));
    add(gpu.ecc.as_ref().ok().filter(|ecc| 0 < ecc.uncorrected).map(|ecc| {
        Finding::fail(
            topic.as_str(),
            format!("{} memory errors could not be corrected since the driver was loaded", ecc.uncorrected),
            "reset the card (`nvidia-smi --gpu-reset`) or restart; if they come back, have it replaced",
        )
    }));
    add((gpu.persistent == Ok(false)).then(|| {
        Finding::warn(
            topic.as_str(),
            "the driver lets go of it between programs: each start waits for it",
            "turn persistence mode on: `nvidia-smi --persistence-mode=1`, or the service nvidia-persistenced",
        )
    }));
    let down = gpu.nvlinks.iter().filter(|link| !link.active).count();
    add((0 < down && down < gpu.nvlinks.len()).then(|| {
        Finding::warn(
            topic.as_str(),
            format!("{down} of {} NVLinks are down", gpu.nvlinks.len()),
            "look at the bridge or the switch (`nvidia-smi nvlink --status`)",
        )
    }));
    findings
}

/// `NVIDIA H200 (sm_90), 139.8 GiB, 139.1 GiB free, 32 °C, 75 of 700 W, PCIe 5 x16, 18 NVLinks`.
fn describe(gpu: &GpuFacts) -> String {
    let mut parts = vec![gpu.name.clone().unwrap_or_else(|reason| reason)];
    if let Ok((major, minor)) = gpu.capability {
        parts[0].push_str(&format!(" (sm_{major}{minor})"));
    }
    match &gpu.memory {
        Ok(memory) => {
            parts.push(gib(memory.total as usize));
            parts.push(format!("{} free", gib(memory.free as usize)));
        }
        Err(reason) => parts.push(format!("memory unknown: {reason}")),
    }
    parts.extend(gpu.temperature.as_ref().ok().map(|celsius| format!("{celsius:.0} °C")));
    match (&gpu.power_watts, &gpu.power_limit_watts) {
        (Ok(watts), Ok(limit)) => parts.push(format!("{watts:.0} of {limit:.0} W")),
        (Ok(watts), Err(_)) => parts.push(format!("{watts:.0} W")),
        (Err(_), _) => {}
    }
    parts.extend(gpu.pcie.as_ref().ok().map(|pcie| format!("PCIe {} x{}", pcie.max_generation, pcie.width)));
    match gpu.nvlinks.iter().filter(|link| link.active).count() {
        0 => {}
        links => parts.push(format!("{links} NVLinks")),
    }
    match gpu.ordinal {
        Some(ordinal) if ordinal == gpu.index => {}
        Some(ordinal) => parts.push(format!("GPU {ordinal} for this program")),
        None => parts.push("hidden from this program".to_owned()),
    }
    parts.join(", ")
}

/// Who else holds memory of the card.
fn others(topic: &str, gpu: &GpuFacts) -> Option<Finding> {
    let memory = gpu.memory.as_ref().ok()?;
    let noteworthy = IDLE_BYTES.max((memory.total as f64 * OTHERS_SHARE) as u64);
    if memory.used < noteworthy {
        return None;
    }
    let who = gpu.holders.as_deref().map_or_else(|_| String::new(), who);
    let who = match who.is_empty() {
        true => "processes that this one cannot see (another container or user)".to_owned(),
        false => who,
    };
    Some(Finding::warn(
        topic,
        format!("{} are held by {who}", gib(memory.used as usize)),
        "end them, hide this GPU with CUDA_VISIBLE_DEVICES, or count on less memory",
    ))
}

/// All of them in a row.
pub(crate) fn who(holders: &[Holder]) -> String {
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn library(library: &LibraryFacts) -> Finding {
    match &library.found {
        Ok((path, version)) => Finding::ok("library", format!("{} {version} at {path}", library.name))
            .with(json!({"library": library.name, "version": version, "path": path})),
        Err(reason) => {
            Finding::warn("library", format!("{reason}; without it {}", library.without), library.remedy)
                .with(json!({"library": library.name, "reason": reason}))
        }
    }
}

/// One line for each sender.
fn links(links: &[LinkFacts]) -> Vec<Finding> {
    let mut senders: Vec<usize> = links.iter().map(|link| link.from).collect();
    senders.dedup();
    let line = |from: usize| {
        let own: Vec<&LinkFacts> = links.iter().filter(|link| link.from == from).collect();
        let text: Vec<String> = own.iter().map(|link| one_link(link)).collect();
        let text = format!("GPU {from} {}", text.join("; "));
        let data: Vec<Value> = own.iter().map(|link| link_json(link)).collect();
        let finding = if own.iter().any(|link| link.measured.is_err()) {
            Finding::fail(
                "link",
                text,
                "GPUs that cannot exchange data serve as replicas only: --data-parallel-size",
            )
        } else if own.iter().any(|link| !link.peer) {
            Finding::warn(
                "link",
                text,
                "without peer access data goes through the host: prefer --pipeline-parallel-size to \
                 --tensor-parallel-size; turn IOMMU and ACS off in the firmware if the cards can do better",
            )
        } else {
            Finding::ok("link", text)
        };
        finding.with(data.into())
    };
    senders.into_iter().map(line).collect()
}

fn one_link(link: &LinkFacts) -> String {
    let way = if link.peer { "" } else { " through the host" };
    match &link.measured {
        Ok((bandwidth, us)) => {
            format!("to {}{way} {:.0} GB/s, {us:.1} us a small copy", link.to, bandwidth / 1e9)
        }
        Err(reason) => format!("to {}{way}: {reason}", link.to),
    }
}

fn link_json(link: &LinkFacts) -> Value {
    let mut object = json!({"from": link.from, "to": link.to, "peer_access": link.peer});
    match &link.measured {
        Ok((bandwidth, us)) => {
            object["bytes_per_second"] = (*bandwidth).into();
            object["small_copy_us"] = (*us).into();
        }
        Err(reason) => object["reason"] = reason.as_str().into(),
    }
    object
}

/// Every figure of a GPU; one that is absent is an object with the reason.
fn as_json(gpu: &GpuFacts) -> Value {
    fn known<T>(figure: &Known<T>, json: impl Fn(&T) -> Value) -> Value {
        match figure {
            Ok(figure) => json(figure),
            Err(reason) => json!({"absent": reason}),
        }
    }
    let text = |figure: &Known<String>| known(figure, |text| text.as_str().into());
    let number = |figure: &Known<f64>| known(figure, |number| (*number).into());
    let traffic = |figure: &Known<phalanx_device::facts::Traffic>| {
        known(figure, |traffic| json!({"sent_bytes": traffic.sent, "received_bytes": traffic.received}))
    };
    let holder = |holder: &Holder| json!({"pid": holder.pid, "name": holder.name, "bytes": holder.bytes});
    json!({
        "index": gpu.index,
        "ordinal": gpu.ordinal,
        "name": text(&gpu.name),
        "uuid": text(&gpu.uuid),
        "pci": text(&gpu.pci),
        "compute_capability": known(&gpu.capability, |(major, minor)| format!("{major}.{minor}").into()),
        "memory": known(&gpu.memory, |memory| json!({"total_bytes": memory.total, "used_bytes": memory.used,
            "reserved_bytes": memory.reserved, "free_bytes": memory.free})),
        "processes": known(&gpu.holders, |holders| holders.iter().map(holder).collect()),
        "utilization": known(&gpu.load, |load| json!({"compute": load.compute, "memory": load.memory})),
        "power_watts": number(&gpu.power_watts),
        "power_limit_watts": number(&gpu.power_limit_watts),
        "temperature_celsius": number(&gpu.temperature),
        "sm_clock_hertz": number(&gpu.sm_clock),
        "memory_clock_hertz": number(&gpu.memory_clock),
        "slowed_by": known(&gpu.slowed_by, |reasons| json!(reasons)),
        "pcie": known(&gpu.pcie, |pcie| json!({"generation": pcie.generation, "width": pcie.width,
            "max_generation": pcie.max_generation, "max_width": pcie.max_width})),
        "pcie_per_second": traffic(&gpu.pcie_rate),
        "nvlinks": {
            "there": gpu.nvlinks.len(),
            "active": gpu.nvlinks.iter().filter(|link| link.active).count(),
            "version": gpu.nvlinks.iter().find_map(|link| link.version),
        },
        "nvlink_traffic": traffic(&gpu.nvlink_traffic),
        "ecc": known(&gpu.ecc, |ecc| json!({"corrected": ecc.corrected, "uncorrected": ecc.uncorrected})),
        "persistence_mode": known(&gpu.persistent, |on| (*on).into()),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::doctor::finding::{Verdict, worst};
    use phalanx_device::facts::{EccFacts, Load, MemoryFacts, NvLinkFacts, PcieFacts, Traffic};

    /// A card that is well and idle.
    pub(crate) fn well(index: usize) -> GpuFacts {
        GpuFacts {
            index,
            ordinal: Some(index),
            name: Ok("NVIDIA H200".to_owned()),
            uuid: Ok(format!("GPU-{index}")),
            pci: Ok("0000:3b:00.0".to_owned()),
            capability: Ok((9, 0)),
            memory: Ok(MemoryFacts { total: 140 << 30, used: 0, reserved: 1 << 29, free: 139 << 30 }),
            holders: Ok(Vec::new()),
            load: Ok(Load { compute: 0.5, memory: 0.25 }),
            power_watts: Ok(75.5),
            power_limit_watts: Ok(700.0),
            temperature: Ok(31.0),
            sm_clock: Ok(1.98e9),
            memory_clock: Err("this GPU does not tell".to_owned()),
            slowed_by: Ok(Vec::new()),
            pcie: Ok(PcieFacts { generation: 1, width: 16, max_generation: 5, max_width: 16 }),
            nvlinks: vec![NvLinkFacts { active: true, version: Some(4) }; 18],
            nvlink_traffic: Ok(Traffic { sent: 1024, received: 2048 }),
            pcie_rate: Ok(Traffic { sent: 5_000_000_000, received: 7_000_000_000 }),
            ecc: Ok(EccFacts { corrected: 3, uncorrected: 0 }),
            xids: Ok(0),
            persistent: Ok(true),
        }
    }

    fn built() -> Vec<Architecture> {
        Architecture::parse_list("80,90a").unwrap()
    }

    fn survey(gpus: Vec<GpuFacts>) -> Survey {
        Survey {
            built: built(),
            usable: Ok(gpus.len()),
            driver: Ok(DriverFacts { version: Ok("580.95.05".to_owned()), cuda: Ok((13, 0)) }),
            gpus: Ok(gpus),
            libraries: vec![LibraryFacts {
                name: "NCCL",
                without: "it is slow",
                remedy: "pip install it",
                found: Ok(("/usr/lib/libnccl.so.2".to_owned(), "2.28.9".to_owned())),
            }],
            links: vec![LinkFacts { from: 0, to: 1, peer: true, measured: Ok((380e9, 9.5)) }],
            sums: Ok(Sums { summary: String::new(), warnings: Vec::new(), table: Vec::new() }),
        }
    }

    #[test]
    fn a_machine_that_is_well_has_nothing_to_mend() {
        let findings = findings(2, Some(&survey(vec![well(0), well(1)])));
        assert_eq!(worst(&findings), Verdict::Ok, "{findings:#?}");
        assert!(
            findings[2]
                .text
                .starts_with("NVIDIA H200 (sm_90), 140.0 GiB, 139.0 GiB free, 31 °C, 76 of 700 W")
        );
        assert_eq!(findings[2].data["memory_clock_hertz"]["absent"], "this GPU does not tell");
        assert_eq!(findings.last().unwrap().text, "GPU 0 to 1 380 GB/s, 9.5 us a small copy");
    }

    #[test]
    fn what_is_wrong_with_a_card_is_told_with_a_remedy() {
        let holder = Holder { pid: 4711, name: Some("python3 train.py".to_owned()), bytes: Some(100 << 30) };
        let held = MemoryFacts { total: 140 << 30, used: 100 << 30, reserved: 0, free: 40 << 30 };
        let narrow = PcieFacts { generation: 4, width: 8, max_generation: 4, max_width: 16 };
        let mut links = well(0).nvlinks;
        links[3].active = false;
        let cases: [(GpuFacts, Verdict, &str); 9] = [
            (GpuFacts { capability: Ok((7, 5)), ..well(0) }, Verdict::Fail, "7.5"),
            (
                GpuFacts { capability: Ok((12, 0)), ..well(0) },
                Verdict::Fail,
                "12.0, and this binary's kernels are",
            ),
            (
                GpuFacts { memory: Ok(held), holders: Ok(vec![holder]), ..well(0) },
                Verdict::Warn,
                "100.0 GiB are held by process 4711 (python3 train.py, 100.0 GiB)",
            ),
            (GpuFacts { memory: Ok(held), ..well(0) }, Verdict::Warn, "cannot see"),
            (GpuFacts { persistent: Ok(false), ..well(0) }, Verdict::Warn, "lets go"),
            (GpuFacts { slowed_by: Ok(vec!["heat"]), ..well(0) }, Verdict::Warn, "held down: heat"),
            (GpuFacts { pcie: Ok(narrow), ..well(0) }, Verdict::Warn, "8 of 16"),
            (
                GpuFacts { ecc: Ok(EccFacts { corrected: 0, uncorrected: 2 }), ..well(0) },
                Verdict::Fail,
                "2 memory",
            ),
            (GpuFacts { nvlinks: links, ..well(0) }, Verdict::Warn, "1 of 18 NVLinks"),
        ];
        for (card, verdict, text) in cases {
            let findings = gpu(&card, &built());
            assert_eq!((findings.len(), findings[1].verdict), (2, verdict), "{findings:#?}");
            assert!(findings[1].text.contains(text), "{findings:#?}");
            assert!(findings[1].fix.is_some());
        }
        // A card at its power limit works as hard as it may.
        assert_eq!(gpu(&GpuFacts { slowed_by: Ok(vec!["power limit"]), ..well(0) }, &built()).len(), 1);
        // Kernels that run, but are older than the card.
        let older = gpu(&well(0), &Architecture::parse_list("80-ptx").unwrap());
        assert_eq!((older.len(), older[1].verdict), (2, Verdict::Warn));
        assert!(older[1].text.contains("kernels of compute_80"), "{older:#?}");
    }

    #[test]
    fn a_driver_that_is_missing_old_or_blind_is_told_apart() {
        fn absent<T>() -> Known<T> {
            Err("not found".to_owned())
        }
        let without = |usable: Known<usize>, driver| Survey {
            built: built(),
            usable,
            driver,
            gpus: absent(),
            libraries: Vec::new(),
            links: Vec::new(),
            sums: absent(),
        };
        let old = DriverFacts { version: Ok("535.1".to_owned()), cuda: Ok((12, 2)) };
        let cases = [
            (0, None, Verdict::Ok, "built without GPUs"),
            (4, None, Verdict::Warn, "4 of NVIDIA's here"),
            (0, Some(without(absent(), Err("no library".to_owned()))), Verdict::Ok, "no driver"),
            (
                2,
                Some(without(absent(), Err("no library".to_owned()))),
                Verdict::Fail,
                "cannot be used: not found",
            ),
            (2, Some(without(absent(), Ok(old))), Verdict::Fail, "535.1, CUDA 12.2; GPUs cannot be used"),
            (2, Some(without(Ok(0), absent())), Verdict::Warn, "no GPU"),
            (2, Some(without(Ok(2), Err("no library".to_owned()))), Verdict::Warn, "not watched: no library"),
        ];
        for (cards, survey, verdict, text) in cases {
            let findings = findings(cards, survey.as_ref());
            let finding = findings.iter().find(|finding| finding.topic != "kernels").unwrap();
            assert_eq!(finding.verdict, verdict, "{findings:#?}");
            assert!(finding.text.contains(text), "{findings:#?}");
        }
    }

    #[test]
    fn links_without_peer_access_or_without_any_way_are_told() {
        let link = |peer, measured| links(&[LinkFacts { from: 0, to: 1, peer, measured }]);
        assert_eq!(link(false, Ok((20e9, 30.0)))[0].verdict, Verdict::Warn);
        assert_eq!(link(true, Err("it failed".to_owned()))[0].verdict, Verdict::Fail);
        let missing = LibraryFacts {
            name: "NCCL",
            without: "it is slow",
            remedy: "pip install it",
            found: Err("libnccl.so.2 is not found".to_owned()),
        };
        let finding = library(&missing);
        assert_eq!((finding.verdict, finding.fix.as_deref()), (Verdict::Warn, Some("pip install it")));
    }
}
