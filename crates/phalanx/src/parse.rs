//! Values of arguments: texts as people write them, and what is wrong with the others.

use phalanx_model::layout::cards::MOST_GPUS;

/// `32768`, `32k` (1,024 each), `128K`.
pub(crate) fn parse_tokens(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let count: usize =
        digits.parse().map_err(|_| format!("{text:?} is no count of tokens such as 32768 or 32k"))?;
    match count.checked_mul(factor) {
        Some(tokens) if 0 < tokens => Ok(tokens),
        _ => Err(format!("{text:?} is no count of tokens such as 32768 or 32k")),
    }
}

/// `4294967296`, `4GiB`, `4GB`, `512MiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, f64); 8] = [
        ("TiB", (1_u64 << 40) as f64),
        ("GiB", (1_u64 << 30) as f64),
        ("MiB", (1_u64 << 20) as f64),
        ("KiB", 1024.0),
        ("TB", 1e12),
        ("GB", 1e9),
        ("MB", 1e6),
        ("KB", 1e3),
    ];
    let wrong = || format!("{text:?} is no size such as 4GiB or 512MiB");
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1.0));
    let value: f64 = digits.trim().parse().map_err(|_| wrong())?;
    let bytes = value * factor;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as usize) } else { Err(wrong()) }
}

/// A whole number from 1.
pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no whole number from 1")),
        Ok(count) => Ok(count),
    }
}

/// As many devices as one machine may have.
pub(crate) fn parse_devices(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MOST_GPUS).contains(&count) => Ok(count),
        _ => Err(format!("{text:?} is no number of devices: from 1 to {MOST_GPUS}")),
    }
}

/// A number above 0, at most 1.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if 0.0 < share && share <= 1.0 => Ok(share),
        _ => Err(format!("{text:?} is no share: a number above 0, at most 1")),
    }
}

/// Seconds above 0, an hour at most.
pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if 0.0 < seconds && seconds <= 3600.0 => Ok(seconds),
        _ => Err(format!("{text:?} is no time: a number of seconds above 0, at most 3600")),
    }
}

/// A level, or a filter with targets such as `warn,phalanx_engine=debug`.
pub(crate) fn parse_log(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    match LEVELS.contains(&text) || text.contains('=') {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is none of {} and no filter such as warn,phalanx_engine=debug",
            LEVELS.join(", ")
        )),
    }
}

pub(crate) fn parse_block_size(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(size) if size.is_power_of_two() && size <= 256 => Ok(size),
        _ => Err(format!("{text:?} is no block size: a power of two up to 256")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_bytes_are_read() {
        assert_eq!(parse_tokens("128K"), Ok(131_072));
        assert_eq!(parse_bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("24GB"), Ok(24_000_000_000));
        for wrong in ["", "x", "-1", "0", "99999999999999999999k"] {
            assert!(parse_tokens(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "GiB", "-1GiB", "nan", "inf", "0.1"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
