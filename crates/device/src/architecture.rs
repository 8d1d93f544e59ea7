//! GPU architectures: what the kernels are built for, and which GPUs run that. The build script reads this file, too.

use std::fmt;
use std::str::FromStr;

/// The newest instructions that kernels here ask for, by nothing but `__CUDA_ARCH__`: launches that overlap.
const OVERLAPPING: (u32, u32) = (9, 0);
/// Older GPUs lack instructions that every kernel has.
const OLDEST: (u32, u32) = (8, 0);

/// One form of the kernels: machine code for a kind of GPU, or PTX, which a driver compiles for the GPU it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Architecture {
    /// Compute capability, for example 9 and 0.
    pub capability: (u32, u32),
    /// `a`: with instructions that no other GPU has, not even a newer one; `f`: those of a family.
    pub variant: Option<char>,
    /// A driver has still to compile it.
    pub is_ptx: bool,
}

impl FromStr for Architecture {
    type Err = String;

    /// Takes `90a` and `80-ptx`, or nvcc's own `sm_90a` and `compute_80`.
    fn from_str(name: &str) -> Result<Self, String> {
        let (number, is_ptx) = match (name.strip_prefix("sm_"), name.strip_prefix("compute_")) {
            (Some(number), _) => (number, false),
            (_, Some(number)) => (number, true),
            _ => name.strip_suffix("-ptx").map_or((name, false), |number| (number, true)),
        };
        let digits = number.trim_end_matches(['a', 'f']);
        let letters = &number[digits.len()..];
        let is_name = (2..=3).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && letters.len() <= 1;
        match digits.parse::<u32>() {
            Ok(number) if is_name && number < 80 => {
                Err(format!("`{name}` is too old: the kernels need sm_80 (Ampere) or newer"))
            }
            Ok(number) if is_name => {
                let capability = (number / 10, number % 10);
                Ok(Self { capability, variant: letters.chars().next(), is_ptx })
            }
            _ => Err(format!(
                "`{name}` is no architecture: 90a or sm_90a is machine code, 80-ptx or compute_80 is PTX, which a \
                 driver compiles for its GPU"
            )),
        }
    }
}

impl fmt::Display for Architecture {
    /// As nvcc names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_ptx { "compute" } else { "sm" };
        write!(f, "{kind}_{}", self.number())
    }
}

impl Architecture {
    /// Reads names with commas between them; one that stands there twice counts once.
    ///
    /// # Errors
    /// A name is none, or there is none.
    pub fn parse_list(names: &str) -> Result<Vec<Self>, String> {
        let mut list = Vec::new();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let architecture = name.parse()?;
            if !list.contains(&architecture) {
                list.push(architecture);
            }
        }
        if list.is_empty() { Err(format!("`{names}` names no architecture")) } else { Ok(list) }
    }

    /// For example `90a`.
    fn number(&self) -> String {
        let (major, minor) = self.capability;
        format!("{major}{minor}{}", self.variant.map_or(String::new(), String::from))
    }

    /// Whether a GPU of this compute capability runs it.
    #[must_use]
    pub fn runs_on(&self, capability: (u32, u32)) -> bool {
        let same_major = self.capability.0 == capability.0 && self.capability.1 <= capability.1;
        match (self.variant, self.is_ptx) {
            (Some('a'), _) => self.capability == capability,
            (Some(_), _) | (None, false) => same_major,
            (None, true) => self.capability <= capability,
        }
    }

    /// What of `built` a driver takes for a GPU: machine code before PTX, then the newest. Nothing when it can run none.
    #[must_use]
    pub fn serving(built: &[Self], capability: (u32, u32)) -> Option<Self> {
        let running = built.iter().copied().filter(|architecture| architecture.runs_on(capability));
        running
            .max_by_key(|architecture| (!architecture.is_ptx, architecture.capability, architecture.variant))
    }

    /// What the kernels lack in this form that the GPU it runs on has; nothing when it is all there.
    #[must_use]
    pub fn lacks(&self, capability: (u32, u32)) -> Option<&'static str> {
        match capability {
            _ if self.capability < OVERLAPPING && OVERLAPPING <= capability => {
                Some("kernels do not overlap, and long prompts take Ampere's tensor-core instructions")
            }
            (9, 0) if self.variant != Some('a') => {
                Some("long prompts take Ampere's tensor-core instructions")
            }
            _ => None,
        }
    }

    /// What the compiler makes first: PTX of this.
    ///
    /// Kernels ask for nothing between sm_80 and sm_90, and, but for variants, for nothing beyond: so machine code of several
    /// GPUs is made of one PTX, which takes the compiler longer than the machine code.
    fn source(&self) -> String {
        match (self.variant, self.is_ptx) {
            (None, false) if self.capability < OVERLAPPING => "compute_80".to_owned(),
            (None, false) => "compute_90".to_owned(),
            _ => format!("compute_{}", self.number()),
        }
    }

    /// nvcc's arguments for all of `list`.
    #[must_use]
    pub fn arguments(list: &[Self]) -> Vec<String> {
        let mut sources: Vec<(String, Vec<String>)> = Vec::new();
        for architecture in list {
            let (source, code) = (architecture.source(), architecture.to_string());
            match sources.iter_mut().find(|(other, _)| *other == source) {
                Some((_, codes)) => codes.push(code),
                None => sources.push((source, vec![code])),
            }
        }
        let argument = |(source, codes): (String, Vec<String>)| {
            format!("-gencode=arch={source},code=[{}]", codes.join(","))
        };
        sources.into_iter().map(argument).collect()
    }
}

/// For people: `sm_80, sm_89 and compute_80`.
#[must_use]
pub fn names(list: &[Architecture]) -> String {
    let names: Vec<String> = list.iter().map(ToString::to_string).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

/// Why a GPU of this capability can run none of `built`; completes `GPU 0 (NVIDIA H200)`.
#[must_use]
pub fn unserved(built: &[Architecture], (major, minor): (u32, u32)) -> String {
    let has = format!("has compute capability {major}.{minor}");
    if (major, minor) < OLDEST {
        return format!("{has}: 8.0 (Ampere) or newer is needed");
    }
    format!("{has}, and this binary's kernels are built for {}, which it does not run", names(built))
}

/// What to do about it.
#[must_use]
pub fn remedy((major, minor): (u32, u32)) -> String {
    if (major, minor) < OLDEST {
        return "hide it from this program with CUDA_VISIBLE_DEVICES".to_owned();
    }
    let variant = if (major, minor) == (9, 0) { "a" } else { "" };
    format!(
        "build it again with PHALANX_CUDA_ARCHITECTURES={major}{minor}{variant}, or without: then it runs on every GPU from \
         Ampere on"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &str) -> Vec<Architecture> {
        Architecture::parse_list(names).unwrap()
    }

    #[test]
    fn either_way_of_naming_is_read_and_nvccs_is_written() {
        for (given, named) in [
            ("80", "sm_80"),
            ("sm_90a", "sm_90a"),
            ("90a", "sm_90a"),
            ("120", "sm_120"),
            ("100f", "sm_100f"),
            ("80-ptx", "compute_80"),
            ("compute_80", "compute_80"),
            ("90a-ptx", "compute_90a"),
        ] {
            assert_eq!(given.parse::<Architecture>().map(|name| name.to_string()), Ok(named.to_owned()));
        }
        assert_eq!(names(&list("80, 89,sm_80,80-ptx")), "sm_80, sm_89 and compute_80");
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_what_would_be_one() {
        for name in [
            "ampere",
            "8",
            "8.0",
            "80a-",
            "90af",
            "90aa",
            "sm_",
            "sm80",
            "sm_80-ptx",
            "1200",
            "+90",
            "compute_",
        ] {
            let error = name.parse::<Architecture>().unwrap_err();
            assert!(error.contains(name) && error.contains("80-ptx"), "{error}");
        }
        assert!("75".parse::<Architecture>().unwrap_err().contains("sm_80 (Ampere)"));
        assert!(Architecture::parse_list(" , ").unwrap_err().contains("no architecture"));
    }

    #[test]
    fn a_driver_takes_the_nearest_machine_code_and_ptx_only_without() {
        let all = list("80,89,90a,100,120,80-ptx");
        for (built, capability, taken) in [
            (&all, (8, 0), Some("sm_80")),
            (&all, (8, 6), Some("sm_80")),
            (&all, (8, 9), Some("sm_89")),
            (&all, (9, 0), Some("sm_90a")),
            (&all, (10, 3), Some("sm_100")),
            (&all, (12, 1), Some("sm_120")),
            (&all, (13, 0), Some("compute_80")),
            (&all, (7, 5), None),
            (&list("89"), (8, 6), None),
            (&list("80"), (9, 0), None),
            (&list("90a"), (10, 0), None),
            (&list("90a-ptx"), (10, 0), None),
            (&list("100f"), (10, 3), Some("sm_100f")),
            (&list("80-ptx,90-ptx"), (9, 0), Some("compute_90")),
        ] {
            let serving = Architecture::serving(built, capability).map(|taken| taken.to_string());
            assert_eq!(serving.as_deref(), taken, "{capability:?} of {}", names(built));
        }
    }

    #[test]
    fn what_a_form_lacks_is_told() {
        let lacks = |name: &str, capability| name.parse::<Architecture>().unwrap().lacks(capability);
        for (name, capability) in [("80", (8, 6)), ("90a", (9, 0)), ("120", (12, 0)), ("90-ptx", (10, 0))] {
            assert_eq!(lacks(name, capability), None, "{name}");
        }
        assert!(lacks("80-ptx", (12, 0)).unwrap().contains("overlap"));
        assert!(lacks("80-ptx", (9, 0)).unwrap().contains("overlap"));
        assert!(lacks("90", (9, 0)).unwrap().contains("long prompts"));
    }

    #[test]
    fn machine_code_of_one_ptx_is_compiled_from_it_once() {
        assert_eq!(
            Architecture::arguments(&list("80,89,90a,100,120,80-ptx,120-ptx")),
            [
                "-gencode=arch=compute_80,code=[sm_80,sm_89,compute_80]",
                "-gencode=arch=compute_90a,code=[sm_90a]",
                "-gencode=arch=compute_90,code=[sm_100,sm_120]",
                "-gencode=arch=compute_120,code=[compute_120]",
            ]
        );
    }

    #[test]
    fn a_gpu_without_code_is_told_what_there_is_and_how_to_come_by_it() {
        let text = unserved(&list("80,90a"), (12, 0));
        assert_eq!(
            text,
            "has compute capability 12.0, and this binary's kernels are built for sm_80 and sm_90a, which it does not run"
        );
        assert!(remedy((12, 0)).contains("PHALANX_CUDA_ARCHITECTURES=120,"));
        assert!(remedy((9, 0)).contains("PHALANX_CUDA_ARCHITECTURES=90a,"));
        assert!(unserved(&list("80-ptx"), (7, 5)).contains("8.0 (Ampere) or newer"));
        assert!(remedy((7, 5)).contains("CUDA_VISIBLE_DEVICES"));
    }
}
