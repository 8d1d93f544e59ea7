//! A model's weights on disk (or made up): opened and checked as a whole, read slice by slice.

pub mod convert;
mod dummy;
mod gguf;
mod inventory;
pub mod load;
mod mapped;
mod safetensors;
pub mod shard;
mod slices;
pub mod vocabulary;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use phalanx_device::cpu::quant;
use phalanx_device::{Device, DeviceError, Format, Matrix, Noise};
use serde::Deserialize;
use serde_json::Value;

use crate::architectures::spec::OUTPUT_MATRIX;
use crate::architectures::{self, TensorShape};
use crate::config::ModelConfig;
use crate::error::{LoadError, printable};
use crate::fields::Fields;
use convert::WeightType;
use dummy::Recipe;
use inventory::{Inventory, Stored};
use mapped::MappedFile;
use shard::Piece;
use slices::{Slice, Slices};
use vocabulary::GgufVocabulary;

/// A model's weights where they fit one file.
const SAFETENSORS: &str = "model.safetensors";
/// Which tensor lies in which file, where they do not.
const SAFETENSORS_INDEX: &str = "model.safetensors.index.json";

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadFormat {
    /// By what lies at the path.
    #[default]
    Auto,
    /// A folder as Hugging Face has it: `config.json` and safetensors files.
    Safetensors,
    /// A GGUF file.
    Gguf,
    /// Only the configuration is read; weights are random.
    Dummy {
        /// Same seed, same weights.
        seed: u64,
    },
}

/// A model's weights, every header checked, nothing loaded.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    path: PathBuf,
    source: Source,
    vocabulary: Option<GgufVocabulary>,
    name: Option<String>,
    /// Every tensor's shape by the name this crate uses.
    shapes: HashMap<String, TensorShape>,
}

#[derive(Debug)]
enum Source {
    Files { files: Vec<MappedFile>, stored: HashMap<String, Stored> },
    Dummy { seed: u64 },
}

/// What each matrix is kept in.
#[derive(Clone, Copy, Debug)]
pub enum WeightFormats<'a> {
    /// Every matrix in one format; those whose rows are not whole blocks of it in the next finer one that fits.
    Uniform(Format),
    /// As these weights are stored, converted to this type.
    Of(&'a Weights, WeightType),
}

impl WeightFormats<'_> {
    /// The format of a matrix with rows of `columns` elements.
    #[must_use]
    pub fn of(&self, tensor: &str, columns: usize) -> Format {
        match self {
            Self::Of(weights, weight_type) => weight_type.applied_to(weights.format(tensor)),
            Self::Uniform(format) => [*format, Format::Q8_0]
                .into_iter()
                .find(|format| columns.is_multiple_of(format.block_len()))
                .unwrap_or(Format::F16),
        }
    }

    /// Elements that can only be read together: a block as stored, even when a conversion takes it apart afterwards.
    #[must_use]
    pub(crate) fn block_len(&self, tensor: &str, columns: usize) -> usize {
        match self {
            Self::Of(weights, _) => weights.format(tensor).block_len(),
            Self::Uniform(_) => self.of(tensor, columns).block_len(),
        }
    }
}

impl Weights {
    /// Opens what lies at `path` and checks it: headers, sizes, names, shapes.
    ///
    /// # Errors
    /// One sentence that names file and tensor.
    pub fn open(path: &Path, format: LoadFormat) -> Result<Self, LoadError> {
        let path = description(path, format)?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        match (format, is_json) {
            (LoadFormat::Dummy { seed }, true) => {
                Ok(Self::assembled(read_config(&path)?, &path, Source::Dummy { seed }))
            }
            (LoadFormat::Dummy { seed }, false) => {
                let weights = open_gguf(&path)?;
                Ok(Self { source: Source::Dummy { seed }, ..weights })
            }
            (_, true) => open_safetensors(&path),
            (_, false) => open_gguf(&path),
        }
    }

    /// Random weights for a configuration that is at hand.
    #[must_use]
    pub fn dummy(config: ModelConfig, seed: u64) -> Self {
        Self::assembled(config, Path::new("dummy weights"), Source::Dummy { seed })
    }

    fn assembled(config: ModelConfig, path: &Path, source: Source) -> Self {
        let shapes = architectures::tensors(&config);
        let shapes = shapes.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Self { config, path: path.to_path_buf(), source, vocabulary: None, name: None, shapes }
    }

    /// The model's sizes.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer inside a GGUF file.
    #[must_use]
    pub fn vocabulary(&self) -> Option<&GgufVocabulary> {
        self.vocabulary.as_ref()
    }

    /// What the file calls itself.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The folder with `config.json`, or the GGUF file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all tensors, as stored.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shapes
            .values()
            .map(|tensor| tensor.rows * self.format(&tensor.name).row_bytes(tensor.columns))
            .sum()
    }

    /// For people: the formats of the matrices and how much each takes, for example `Q4_K 55 %, Q6_K 45 %`.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut bytes: BTreeMap<&str, usize> = BTreeMap::new();
        for tensor in self.shapes.values().filter(|tensor| !tensor.kind.is_vector()) {
            let format = self.format(&tensor.name);
            *bytes.entry(convert::label(format)).or_default() +=
                tensor.rows * format.row_bytes(tensor.columns);
        }
        let all: usize = bytes.values().sum();
        let shares: Vec<String> = bytes
            .iter()
            .map(|(format, bytes)| format!("{format} {} %", (bytes * 100 + all / 2) / all))
            .collect();
        match self.source {
            Source::Dummy { seed } => format!("dummy weights (seed {seed}), {}", shares.join(", ")),
            Source::Files { .. } => shares.join(", "),
        }
    }

    /// How a tensor of this model is stored.
    ///
    /// # Panics
    /// The model has no such tensor.
    #[must_use]
    pub fn format(&self, tensor: &str) -> Format {
        match &self.source {
            Source::Dummy { .. } => self.config.dtype,
            Source::Files { stored, .. } => stored[tensor].format,
        }
    }

    /// Pieces of one width, one below the other, as one matrix of `device` in `format`.
    pub(crate) fn load(
        &self,
        device: &Device,
        pieces: &[Piece],
        format: Format,
    ) -> Result<Matrix, DeviceError> {
        let columns = pieces[0].columns.len();
        let rows = pieces.iter().map(|piece| piece.rows.len()).sum();
        match &self.source {
            Source::Dummy { seed } => {
                let pieces: Vec<Noise> = pieces.iter().map(|piece| self.noise(*seed, piece)).collect();
                device.make_matrix(format, &pieces)
            }
            Source::Files { files, stored } => {
                let slice = |piece: &Piece| {
                    let stored = &stored[&piece.tensor];
                    assert!(piece.rows.end <= stored.rows && piece.columns.end <= stored.columns);
                    let (rows, columns) = (piece.rows.clone(), piece.columns.clone());
                    Slice { file: &files[stored.file], stored, rows, columns }
                };
                let slices = Slices { slices: pieces.iter().map(slice).collect(), format };
                device.load_matrix(format, rows, columns, &slices)
            }
        }
    }

    fn noise(&self, seed: u64, piece: &Piece) -> Noise {
        let shape = &self.shapes[&piece.tensor];
        let recipe = Recipe::new(seed, shape, self.config.num_layers);
        assert!(recipe.middle == 0.0 && piece.rows.end <= shape.rows, "a slice of a matrix");
        Noise {
            key: recipe.key,
            spread: recipe.spread,
            stored: self.config.dtype,
            tensor_columns: shape.columns,
            rows: piece.rows.clone(),
            columns: piece.columns.clone(),
        }
    }

    /// Elements `range` of a vector.
    pub(crate) fn vector(&self, tensor: &str, range: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        let shape = &self.shapes[tensor];
        assert!(range.end <= shape.columns, "a slice of {tensor}");
        let mut values = vec![0.0; range.len()];
        let format = self.format(tensor);
        let mut bytes = vec![0; format.row_bytes(range.len())];
        match &self.source {
            Source::Dummy { seed } => {
                Recipe::new(*seed, shape, self.config.num_layers).fill(range.start, &mut values);
                // As a file would have it.
                quant::encode(format, &values, &mut bytes);
            }
            Source::Files { files, stored } => {
                let stored = &stored[tensor];
                files[stored.file].read_at(stored.start + format.row_bytes(range.start), &mut bytes)?;
            }
        }
        quant::dequantize(format, &bytes, &mut values);
        Ok(values)
    }
}

/// The file that describes the model at `path`: a `config.json` or a GGUF file.
fn description(path: &Path, format: LoadFormat) -> Result<PathBuf, LoadError> {
    let metadata = path.metadata().map_err(|error| LoadError::io(path, &error))?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if metadata.is_file() {
        return match (format, extension) {
            (LoadFormat::Safetensors, _) | (_, "safetensors") => Err(LoadError::refused(
                path,
                "is a single file",
                "give the folder that holds config.json and the safetensors files",
            )),
            (LoadFormat::Auto, "json") => Err(LoadError::refused(
                path,
                "describes a model",
                "give the folder that also holds its weights",
            )),
            _ => Ok(path.to_path_buf()),
        };
    }
    let config = path.join("config.json");
    let has_config = config.is_file() && format != LoadFormat::Gguf;
    // GGUF repositories often keep the original's config.json, without the weights it went with.
    let has_weights = [SAFETENSORS, SAFETENSORS_INDEX].iter().any(|name| path.join(name).is_file());
    if has_config && (has_weights || format != LoadFormat::Auto) {
        return Ok(config);
    }
    let entries = path.read_dir().map_err(|error| LoadError::io(path, &error))?;
    let mut gguf: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    match (gguf.pop(), gguf.is_empty(), format) {
        (Some(file), true, LoadFormat::Auto | LoadFormat::Gguf | LoadFormat::Dummy { .. }) => Ok(file),
        (Some(_), false, _) => Err(LoadError::refused(path, "holds several GGUF files", "name one of them")),
        _ if has_config => Err(LoadError::refused(
            path,
            "holds a config.json, and neither model.safetensors (or its index) nor a GGUF file",
            "give a folder that holds the weights too",
        )),
        _ => Err(LoadError::refused(
            path,
            "holds no config.json and no GGUF file",
            "give a model's folder, or a GGUF file",
        )),
    }
}

fn read_config(path: &Path) -> Result<ModelConfig, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|error| LoadError::io(path, &error))?;
    ModelConfig::from_json(path, &text)
}

/// Opens the safetensors files beside a `config.json`.
fn open_safetensors(config_path: &Path) -> Result<Weights, LoadError> {
    let config = read_config(config_path)?;
    let folder = config_path.parent().unwrap_or(Path::new("."));
    let index_path = folder.join(SAFETENSORS_INDEX);
    let (names, index) = match index_path.is_file() {
        true => read_index(&index_path)?,
        false => (vec![SAFETENSORS.to_string()], BTreeMap::new()),
    };
    let mut files = Vec::with_capacity(names.len());
    let mut inventory = Inventory::default();
    for (number, name) in names.iter().enumerate() {
        let file = MappedFile::open(&folder.join(name))?;
        safetensors::read_header(&file, number, &mut inventory)?;
        files.push(file);
    }
    for (tensor, file) in &index {
        match inventory.get(tensor) {
            Some(stored) if names[stored.file] == *file => {}
            _ => {
                return Err(LoadError::tensor(
                    &folder.join(file),
                    tensor,
                    "is missing, although the index names it",
                ));
            }
        }
    }
    let stored = {
        let paths: Vec<&Path> = files.iter().map(|file| file.path.as_path()).collect();
        let tied = config.tie_word_embeddings;
        let harmless = |name: &str| name.ends_with(".rotary_emb.inv_freq") || (tied && name == OUTPUT_MATRIX);
        inventory.matched(&paths, &architectures::tensors(&config), str::to_string, harmless)?
    };
    Ok(Weights::assembled(config, folder, Source::Files { files, stored }))
}

/// `model.safetensors.index.json`: the files, each once and in order, and which tensor lies in which.
fn read_index(path: &Path) -> Result<(Vec<String>, BTreeMap<String, String>), LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path).map_err(|error| LoadError::io(path, &error))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|error| LoadError::malformed(path, printable(&error.to_string())))?;
    let mut names: Vec<String> = index.weight_map.values().cloned().collect();
    names.sort();
    names.dedup();
    // A name from the internet must not lead out of the folder, nor break the line that an error is.
    let is_bad = |name: &str| {
        name.contains(['/', '\\']) || name.starts_with('.') || name.is_empty() || printable(name) != name
    };
    match names.iter().find(|name| is_bad(name)) {
        Some(name) => Err(LoadError::malformed(path, format!("names the file {}", printable(name)))),
        None if names.is_empty() => Err(LoadError::malformed(path, "names no file")),
        None => Ok((names, index.weight_map)),
    }
}

fn open_gguf(path: &Path) -> Result<Weights, LoadError> {
    let file = MappedFile::open(path)?;
    let (mut metadata, inventory) = gguf::read_header(&file)?;
    let vocabulary = GgufVocabulary::take(path, &mut metadata)?;
    let fields = Fields { file: path, values: &metadata.scalars };
    if let Some(2..) = fields.present("split.count").and_then(Value::as_u64) {
        return Err(fields.refused(
            "split.count",
            "is one part of several",
            "merge them with llama-gguf-split --merge",
        ));
    }
    let Some(embedding) = inventory.get(architectures::GGUF_EMBEDDING) else {
        return Err(LoadError::tensor(path, architectures::GGUF_EMBEDDING, "is missing"));
    };
    let tied = inventory.get(architectures::GGUF_OUTPUT_MATRIX).is_none();
    let config = ModelConfig::from_gguf(&fields, embedding.rows, tied)?;
    let name = fields.optional_text("general.name")?.map(str::to_string);
    let needed = architectures::tensors(&config);
    let harmless = |name: &str| name == "rope_freqs.weight";
    let stored = inventory.matched(&[path], &needed, architectures::gguf_name, harmless)?;
    let weights = Weights::assembled(config, path, Source::Files { files: vec![file], stored });
    Ok(Weights { vocabulary, name, ..weights })
}
