//! What `doctor` says of model files: whether they are whole, how large, and how fast their disk is.

use std::path::{Path, PathBuf};

use phalanx_hub::{HeldModel, HubError, Partial};
use phalanx_model::{LoadError, LoadFormat, Weights};
use serde_json::json;

use super::finding::Finding;
use super::machine;
use crate::args::{DoctorArgs, DtypeArg, LoadFormatArg, ModelArgs};
use crate::files;
use crate::plan::gib;

/// A smaller file is read before a disk has shown how fast it is.
const LEAST_READ: u64 = 64 << 20;

/// The model that was asked about, or all that the cache holds; and the disk they lie on.
pub(crate) fn findings(args: &DoctorArgs) -> Vec<Finding> {
    let cache = args.hub.cache();
    let (mut findings, largest) = match &args.model {
        Some(model) => asked(model, args),
        None => held(&cache),
    };
    let folder = largest.as_deref().and_then(Path::parent).unwrap_or(&cache);
    findings.push(machine::space(folder));
    findings.extend(largest.as_deref().filter(|path| LEAST_READ <= len(path)).map(machine::reading));
    findings
}

/// Everything that `serve` would open, opened, from this disk only.
fn asked(model: &str, args: &DoctorArgs) -> (Vec<Finding>, Option<PathBuf>) {
    let mut hub = args.hub.clone();
    hub.offline = true;
    let asked = ModelArgs {
        model: Some(model.to_owned()),
        positional_model: None,
        revision: None,
        load_format: LoadFormatArg::Auto,
        dtype: DtypeArg::Auto,
        chat_template: None,
        tokenizer: None,
        hub,
    };
    match files::open(&asked, 0) {
        Ok(files) => {
            let path = files.weights.path();
            let text = format!("{} is whole: {}, {}", files.name, files.weights.describe(), path.display());
            let bytes = files.weights.bytes();
            let data =
                json!({"model": files.name, "path": path.display().to_string(), "weights_bytes": bytes});
            (vec![Finding::ok("model", format!("{text}, {}", gib(bytes))).with(data)], largest_file(path))
        }
        Err(error) => (vec![unusable(model, &error)], None),
    }
}

/// Why a model that was asked about does not open. Nobody said `--offline`: that nothing was fetched is not the reason.
fn unusable(model: &str, error: &anyhow::Error) -> Finding {
    let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
    let told = causes.join(": ");
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<LoadError>());
    match (error.chain().find_map(|cause| cause.downcast_ref::<HubError>()), kind) {
        (Some(HubError::NotHere(what)), _) => {
            Finding::fail("model", what.clone(), format!("fetch it with `phalanx pull {model}`"))
        }
        (Some(_), _) => Finding::fail(
            "model",
            told,
            "give a folder or a .gguf file that is there, a catalogue name or a hub id",
        ),
        (None, Some(LoadError::Refused { file, what, instead })) => {
            Finding::fail("model", format!("{}: {what}", file.display()), instead.clone())
        }
        (None, _) if Path::new(model).exists() => {
            Finding::fail("model", told, "copy or fetch the files again")
        }
        (None, _) => Finding::fail("model", told, format!("fetch it again with `phalanx pull {model}`")),
    }
}

fn held(cache: &Path) -> (Vec<Finding>, Option<PathBuf>) {
    let (models, partials) = phalanx_hub::held(cache);
    let mut usable = Vec::new();
    let mut findings = Vec::new();
    for model in &models {
        let opened = Weights::open(&model.path, LoadFormat::Auto);
        usable.extend(opened.is_ok().then_some(model));
        findings.push(held_model(model, opened));
    }
    findings.extend(partials.iter().map(broken_off));
    if findings.is_empty() {
        let text = format!("none in {}", cache.display());
        findings.push(Finding::ok("model", format!("{text} yet: `phalanx serve` fetches one")));
    }
    let largest = usable.iter().filter_map(|model| largest_file(&model.path));
    (findings, largest.max_by_key(|path| len(path)))
}

/// `opened` is headers, sizes, names and shapes of every file: what is cut off or swapped shows.
fn held_model(model: &HeldModel, opened: Result<Weights, LoadError>) -> Finding {
    let HeldModel { name, path, bytes, missing } = model;
    let data = json!({"model": name, "path": path.display().to_string(), "bytes": bytes, "missing": missing});
    let again = format!("fetch it again with `phalanx pull {name}`");
    let finding = match (missing.first(), opened) {
        // The cache is shared with other tools, which run what this program does not.
        (_, Err(LoadError::Refused { what, .. })) => {
            Finding::ok("model", format!("{name} cannot be served, and is let be: {what}"))
        }
        (Some(file), _) => {
            Finding::warn("model", format!("{name} lacks {file} in {}", path.display()), again)
        }
        (None, Err(error)) => Finding::warn("model", format!("{name} cannot be used: {error}"), again),
        (None, Ok(weights)) => Finding::ok(
            "model",
            format!("{name} is whole: {}, {}, {}", weights.describe(), gib(*bytes as usize), path.display()),
        ),
    };
    finding.with(data)
}

fn broken_off(partial: &Partial) -> Finding {
    let Partial { name, path, bytes } = partial;
    Finding::warn(
        "model",
        format!("a download of {name} broke off after {}: {}", gib(*bytes as usize), path.display()),
        "fetch the model again to go on with it, or delete the file",
    )
    .with(json!({"model": name, "path": path.display().to_string(), "bytes": bytes}))
}

/// The file itself, or the largest of a folder.
fn largest_file(path: &Path) -> Option<PathBuf> {
    // Weights in several files are named by their folder's `config.json`.
    let folder = if path.is_dir() { path } else { path.parent()? };
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return Some(path.to_owned());
    }
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .max_by_key(|path| len(path))
}

fn len(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Verdict;

    #[test]
    fn torn_files_are_told_from_whole_ones() {
        let cache = tempfile::tempdir().unwrap();
        assert!(held(cache.path()).0[0].text.contains("none in"));
        let catalogue = cache.path().join("catalogue");
        std::fs::create_dir(&catalogue).unwrap();
        std::fs::write(catalogue.join("torn.gguf"), "GGUF").unwrap();
        std::fs::write(catalogue.join("more.gguf.incomplete"), "GG").unwrap();
        let (findings, largest) = held(cache.path());
        assert_eq!(findings.iter().map(|finding| finding.verdict).collect::<Vec<_>>(), [Verdict::Warn; 2]);
        assert!(findings[0].text.contains("torn cannot be used"), "{findings:?}");
        assert!(findings[1].text.contains("broke off"), "{findings:?}");
        assert_eq!(largest, None, "a disk is not judged by what is torn");
    }

    #[test]
    fn models_of_other_tools_are_let_be() {
        let cache = tempfile::tempdir().unwrap();
        for (name, config) in [
            ("a", r#"{"architectures": ["LlamaForCausalLM"]}"#),
            ("b", r#"{"architectures": ["Qwen2ForCausalLM"]}"#),
        ] {
            let folder = cache.path().join(format!("models--o--{name}/snapshots/1"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("config.json"), config).unwrap();
        }
        let llama = cache.path().join("models--o--a/snapshots/1/model.safetensors");
        std::fs::write(llama, "weights").unwrap();
        for finding in held(cache.path()).0 {
            assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
            assert!(finding.text.contains("cannot be served, and is let be"), "{finding:?}");
        }
    }

    /// What `serve` says of a folder, `doctor` says too; neither sends anybody to fetch the same files once more.
    #[test]
    fn what_is_not_supported_is_named_as_serve_names_it() {
        let sizes = r#""hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 50, "max_position_embeddings": 128"#;
        for (asked, field) in [
            (r#""architectures": ["LlamaForCausalLM"]"#, "architectures: names LlamaForCausalLM"),
            (
                r#""use_sliding_window": true, "sliding_window": 32, "max_window_layers": 0"#,
                "use_sliding_window: layers from 0 on see the last 32 tokens only",
            ),
            (r#""rope_scaling": {"rope_type": "llama3"}"#, "rope_scaling: asks for rope_type llama3"),
            (
                r#""quantization_config": {"quant_method": "gptq"}"#,
                "quantization_config: the weights are quantised (gptq)",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let config = format!(r#"{{"architectures": ["Qwen2ForCausalLM"], {sizes}, {asked}}}"#);
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            std::fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
            let error = Weights::open(folder.path(), LoadFormat::Auto).unwrap_err();
            let served = anyhow::Error::from(error.clone()).context(files::NoModel);
            let finding = unusable(&folder.path().display().to_string(), &served);
            let fix = finding.fix.unwrap();
            assert_eq!(finding.verdict, Verdict::Fail);
            assert!(finding.text.contains(field), "{}", finding.text);
            assert!(
                !fix.contains("again") && (fix.contains("take a model") || fix.contains("take the model")),
                "{fix}"
            );
            assert_eq!(error.to_string(), format!("{}; {fix}", finding.text));
        }
    }
}
