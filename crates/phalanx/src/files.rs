//! From what a user wrote behind `--model` to weights, tokenizer and template, all of them opened and checked.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use phalanx_engine::Sampling;
use phalanx_hub::{HubOptions, Located, Wanted, catalogue};
use phalanx_model::{LoadFormat, WeightType, Weights};
use phalanx_text::{ChatTemplate, Tokenizer, Vocabulary};
use serde_json::Value;

use crate::args::{DtypeArg, LoadFormatArg, ModelArgs};
use crate::progress::Bar;
use crate::terminal;
use crate::timeline::Timeline;

/// Marks errors of finding and opening a model: the process exits with a code of its own.
#[derive(Debug)]
pub(crate) struct NoModel;

impl std::fmt::Display for NoModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the model cannot be used")
    }
}

/// A model's files, opened; nothing is in a device's memory yet.
#[derive(Clone)]
pub(crate) struct ModelFiles {
    pub(crate) name: String,
    pub(crate) weights: Arc<Weights>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<Arc<ChatTemplate>>,
    /// Every token that ends an answer.
    pub(crate) eos_token_ids: Vec<u32>,
    /// What requests get that leave sampling fields out.
    pub(crate) sampling: Sampling,
    /// Of this start: it began when the model was looked for.
    pub(crate) timeline: Arc<Timeline>,
}

impl ModelFiles {
    /// The same files, for another start that begins now.
    pub(crate) fn again(&self) -> Self {
        Self { timeline: Arc::new(Timeline::start()), ..self.clone() }
    }
}

/// Finds, fetches when need be, and opens the model.
pub(crate) fn open(args: &ModelArgs, seed: u64) -> Result<ModelFiles> {
    open_files(args, seed).context(NoModel)
}

/// `phalanx pull`: only the files.
pub(crate) fn pull(args: &ModelArgs) -> Result<()> {
    let located = locate(args).context(NoModel)?;
    terminal::say(&located.path.display().to_string());
    Ok(())
}

fn locate(args: &ModelArgs) -> Result<Located> {
    let written = args.written().unwrap_or(catalogue::DEFAULT_CPU.name);
    Ok(phalanx_hub::locate(written, &hub_options(args), &Bar::new())?)
}

fn hub_options(args: &ModelArgs) -> HubOptions {
    let hub = &args.hub;
    // Compose files and CI set variables to nothing when they mean to leave them out.
    let given = |text: &String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let address = |text: &String, absent: &str| given(text).unwrap_or_else(|| absent.to_owned());
    HubOptions {
        endpoint: address(&hub.hf_endpoint, phalanx_hub::HUGGING_FACE),
        modelscope_endpoint: address(&hub.modelscope_endpoint, phalanx_hub::MODELSCOPE),
        token: hub.hf_token.as_ref().and_then(given),
        cache: hub.cache(),
        python: hub.python.clone(),
        offline: hub.offline,
        revision: args.revision.as_ref().and_then(given),
        what: match args.load_format {
            LoadFormatArg::Dummy => Wanted::Description,
            LoadFormatArg::Auto | LoadFormatArg::Safetensors | LoadFormatArg::Gguf => Wanted::All,
        },
    }
}

fn open_files(args: &ModelArgs, seed: u64) -> Result<ModelFiles> {
    let timeline = Timeline::start();
    let located = locate(args)?;
    let weights = Weights::open(&located.path, load_format(args.load_format, seed))?;
    let folder = if located.path.is_dir() { located.path.as_path() } else { parent(&located.path) };
    let (tokenizer, own_template) = match (weights.vocabulary(), &args.tokenizer) {
        (Some(_), None) => from_gguf(&weights)?,
        (_, given) => from_folder(given.as_deref().unwrap_or(folder))?,
    };
    let template = match &args.chat_template {
        Some(file) => Some(read_template(file, &tokenizer)?),
        None => own_template,
    };
    let generation = read_json(&folder.join("generation_config.json"));
    timeline.end("files");
    Ok(ModelFiles {
        name: located.name,
        eos_token_ids: end_tokens(&tokenizer, &generation),
        sampling: default_sampling(&generation),
        tokenizer: Arc::new(tokenizer),
        template: template.map(Arc::new),
        weights: Arc::new(weights),
        timeline: Arc::new(timeline),
    })
}

fn load_format(format: LoadFormatArg, seed: u64) -> LoadFormat {
    match format {
        LoadFormatArg::Auto => LoadFormat::Auto,
        LoadFormatArg::Safetensors => LoadFormat::Safetensors,
        LoadFormatArg::Gguf => LoadFormat::Gguf,
        LoadFormatArg::Dummy => LoadFormat::Dummy { seed },
    }
}

/// What `--dtype` means for weights.
pub(crate) fn weight_type(dtype: DtypeArg) -> WeightType {
    match dtype {
        DtypeArg::Auto => WeightType::AsStored,
        DtypeArg::Half => WeightType::F16,
        DtypeArg::Bfloat16 => WeightType::BF16,
        DtypeArg::Float32 => WeightType::F32,
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A GGUF file carries its tokenizer and template.
fn from_gguf(weights: &Weights) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let held = weights.vocabulary().expect("the caller saw it");
    let vocabulary = Vocabulary {
        tokens: held.tokens.clone(),
        token_types: held.token_types.clone(),
        merges: held.merges.clone(),
        pre: held.pre.clone(),
        bos: held.bos,
        eos: held.eos,
    };
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary)
        .with_context(|| format!("the tokenizer in {}", weights.path().display()))?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_owned();
    let template = match &held.chat_template {
        Some(source) => Some(ChatTemplate::new(source, &text(held.bos), &text(held.eos))?),
        None => None,
    };
    Ok((tokenizer, template))
}

fn from_folder(path: &Path) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let (file, folder) =
        if path.is_dir() { (path.join("tokenizer.json"), path) } else { (path.to_owned(), parent(path)) };
    Ok((Tokenizer::from_file(&file)?, ChatTemplate::from_folder(folder)?))
}

fn read_template(file: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let named = || format!("--chat-template {}", file.display());
    let source = std::fs::read_to_string(file).with_context(named)?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
    ChatTemplate::new(&source, text(tokenizer.bos_id()), text(tokenizer.eos_id())).with_context(named)
}

/// A side file that may be absent; one that is damaged is as good as absent, and told.
fn read_json(path: &Path) -> Value {
    match std::fs::read_to_string(path) {
        Err(_) => Value::Null,
        Ok(text) => serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!("{} is not used: {error}", path.display());
            Value::Null
        }),
    }
}

/// The tokenizer's end token, those of the generation config, and Qwen's two, of which GGUF files name only one.
fn end_tokens(tokenizer: &Tokenizer, generation: &Value) -> Vec<u32> {
    let listed = match &generation["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        id => id.as_u64().into_iter().collect::<Vec<_>>(),
    };
    let named = ["<|im_end|>", "<|endoftext|>"].iter().filter_map(|text| tokenizer.id_of(text));
    let vocab_size = tokenizer.vocab_size();
    let mut ids: Vec<u32> = listed
        .into_iter()
        .filter_map(|id| u32::try_from(id).ok())
        .chain(tokenizer.eos_id())
        .chain(named)
        .filter(|id| (*id as usize) < vocab_size)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The model's own `generation_config.json`; without one, the temperature and cuts that Qwen publishes for Qwen2.5.
fn default_sampling(generation: &Value) -> Sampling {
    let number = |key: &str, absent: f32| generation[key].as_f64().map_or(absent, |value| value as f32);
    match generation {
        Value::Null => Sampling { temperature: 0.7, top_p: 0.8, top_k: 20, ..Sampling::default() },
        greedy if greedy["do_sample"] == false => Sampling { temperature: 0.0, ..Sampling::default() },
        _ => Sampling {
            temperature: number("temperature", 1.0),
            top_p: number("top_p", 1.0),
            top_k: generation["top_k"].as_i64().unwrap_or(0),
            min_p: number("min_p", 0.0),
            repetition_penalty: number("repetition_penalty", 1.0),
            ..Sampling::default()
        },
    }
}
