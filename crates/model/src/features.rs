//! What a `config.json` may ask for that this program does not do: named, with what to do instead.

use serde_json::Value;

use crate::error::{LoadError, printable};
use crate::fields::Fields;

/// What to do about weights that cannot be read.
pub(crate) const UNQUANTISED: &str =
    "take the model's own repository, in bfloat16 or float16, or a GGUF file of it such as Q4_K_M";
/// What to do about positions that are turned in another way.
pub(crate) const OTHER_ROPE: &str =
    "take a model without it: Qwen2.5 has rope_type default, or yarn for long contexts";

/// Larger than any count in a file.
const MOST: usize = 1 << 30;

/// Checks what a file of a known architecture asks for beside its sizes.
///
/// # Errors
/// Names the first field that asks for something else than this program does.
pub(crate) fn refuse(fields: &Fields<'_>) -> Result<(), LoadError> {
    quantised(fields)?;
    sliding_window(fields)?;
    match fields.optional_text("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(other) => {
            let what = format!("is {}, and this program knows silu", printable(other));
            Err(fields.refused("hidden_act", &what, "take a model that has silu, as all of Qwen2.5 have"))
        }
    }
}

/// Weights that another program has quantised: without this, the first tensor with another name would be what is missed.
fn quantised(fields: &Fields<'_>) -> Result<(), LoadError> {
    let key = "quantization_config";
    let Some(config) = fields.present(key) else { return Ok(()) };
    let method = config.get("quant_method").and_then(Value::as_str).map_or("an unnamed method", |name| name);
    let bits =
        config.get("bits").and_then(Value::as_u64).map_or(String::new(), |bits| format!(", {bits} bits"));
    let what = format!(
        "the weights are quantised ({}{bits}), which is read from GGUF files only",
        printable(method)
    );
    Err(fields.refused(key, &what, UNQUANTISED))
}

/// Some layers see only the last tokens. What a file leaves out is as transformers has it.
fn sliding_window(fields: &Fields<'_>) -> Result<(), LoadError> {
    let key = "use_sliding_window";
    if !fields.switch(key)? || fields.values.get("sliding_window") == Some(&Value::Null) {
        return Ok(());
    }
    let window = fields.optional_count("sliding_window", MOST)?.unwrap_or(4096);
    let layers = fields.count("num_hidden_layers", MOST)?;
    // The first layers see everything; newer files list each layer's kind.
    let from = match fields.present("layer_types").and_then(Value::as_array) {
        Some(kinds) => kinds.iter().position(|kind| kind == "sliding_attention").unwrap_or(layers),
        None => {
            fields.present("max_window_layers").and_then(Value::as_u64).map_or(28, |first| first as usize)
        }
    };
    if layers <= from {
        return Ok(());
    }
    let what = format!(
        "layers from {from} on see the last {window} tokens only (sliding_window), and this program has full attention"
    );
    let instead = format!(
        "take a model without it, or set the field to false and serve with --max-model-len {window}: that long, both are \
         the same"
    );
    Err(fields.refused(key, &what, &instead))
}
