//! Values of arguments: texts as people write them, and what is wrong with the others.

use std::net::{IpAddr, Ipv4Addr};

use phalanx_model::layout::Layout;
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

/// An address of this machine, or `localhost`.
pub(crate) fn parse_host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| {
            format!("{text:?} is no address: 127.0.0.1 (this machine only), 0.0.0.0 (everybody), or one of this machine's")
        }),
    }
}

/// A number above 0, at most 1.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if 0.0 < share && share <= 1.0 => Ok(share),
        _ => Err(format!("{text:?} is no share: a number above 0, at most 1")),
    }
}

/// As a request's: asked before a model is loaded, not after.
pub(crate) fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(temperature) if (0.0..=100.0).contains(&temperature) => Ok(temperature),
        _ => Err(format!("{text:?} is no temperature: a number from 0 to 100")),
    }
}

/// As a request's.
pub(crate) fn parse_top_p(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(top_p) if 0.0 < top_p && top_p <= 1.0 => Ok(top_p),
        _ => Err(format!("{text:?} is no probability: a number above 0, at most 1")),
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

/// `tp4`, `pp2tp2`, `dp2`: parallel sizes in any order, each once; what is not named is 1.
pub(crate) fn parse_layout(text: &str) -> Result<Layout, String> {
    let wrong = |what: String| format!("{text:?} is no layout such as tp4, tp2pp2 or dp2: {what}");
    let mut sizes = [("dp", None), ("pp", None), ("tp", None)];
    let mut rest = text.trim();
    while let Some((name, behind)) = rest.split_at_checked(2) {
        let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
        let (number, others) = behind.split_at(digits);
        let known = sizes.iter_mut().find(|(known, _)| name.eq_ignore_ascii_case(known));
        let Some((name, size)) = known else {
            return Err(wrong(format!("{name:?} is none of dp, pp and tp")));
        };
        if size.is_some() {
            return Err(wrong(format!("{name} stands there twice")));
        }
        match number.parse() {
            Ok(number) if (1..=MOST_GPUS).contains(&number) => *size = Some(number),
            _ => return Err(wrong(format!("behind {name} stands no number from 1 to {MOST_GPUS}"))),
        }
        rest = others;
    }
    match (rest, sizes.map(|(_, size)| size)) {
        ("", [None, None, None]) => Err(wrong("it is empty".to_owned())),
        ("", [replicas, num_stages, tensor_size]) => Ok(Layout {
            replicas: replicas.unwrap_or(1),
            num_stages: num_stages.unwrap_or(1),
            tensor_size: tensor_size.unwrap_or(1),
        }),
        (rest, _) => Err(wrong(format!("{rest:?} is none of dp, pp and tp with a number"))),
    }
}

/// Equal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// How many.
    pub(crate) requests: usize,
    /// Tokens of each prompt.
    pub(crate) input_len: usize,
    /// Tokens of each answer.
    pub(crate) output_len: usize,
}

/// `512x1024+256`: so many requests of so many tokens in and out.
pub(crate) fn parse_crowd(text: &str) -> Result<Crowd, String> {
    let wrong = || {
        format!(
            "{text:?} is no crowd such as 512x1024+256, which is 512 requests of 1024 tokens in and 256 out"
        )
    };
    let (requests, lens) = text.split_once(['x', 'X']).ok_or_else(wrong)?;
    let (input, output) = lens.split_once('+').ok_or_else(wrong)?;
    Ok(Crowd {
        requests: parse_count(requests).map_err(|_| wrong())?,
        input_len: parse_tokens(input).map_err(|_| wrong())?,
        output_len: parse_tokens(output).map_err(|_| wrong())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::spelt;

    #[test]
    fn sampling_is_refused_before_a_model_is_loaded() {
        assert_eq!((parse_temperature("0"), parse_top_p("0.9")), (Ok(0.0), Ok(0.9)));
        for text in ["nan", "-1", "101", "inf", "warm"] {
            assert!(parse_temperature(text).unwrap_err().contains("a number from 0 to 100"), "{text}");
        }
        for text in ["0", "nan", "1.1", "-0.5", "all"] {
            assert!(parse_top_p(text).unwrap_err().contains("above 0, at most 1"), "{text}");
        }
    }

    #[test]
    fn layouts_are_read_as_they_are_spelt() {
        let read = |text| parse_layout(text).map(|layout| layout.to_string());
        for (text, layout) in
            [("tp4", "1 x 1 x 4"), ("pp2tp2", "1 x 2 x 2"), ("TP2PP2", "1 x 2 x 2"), ("dp3", "3 x 1 x 1")]
        {
            assert_eq!(read(text), Ok(layout.to_owned()));
        }
        for layout in Layout::candidates(4) {
            assert_eq!(parse_layout(&spelt(layout)), Ok(layout));
        }
        let cases = [
            ("", "it is empty"),
            ("4", "\"4\" is none of dp, pp and tp with a number"),
            ("tp", "behind tp stands no number"),
            ("tp0", "behind tp stands no number"),
            ("tp65", "behind tp stands no number from 1 to 64"),
            ("tp2tp2", "tp stands there twice"),
            ("tp2x", "\"x\" is none of dp, pp and tp with a number"),
            ("ep2", "\"ep\" is none of dp, pp and tp"),
            ("\u{e9}\u{e9}2", "is none of dp, pp and tp"),
            ("tp2 pp2", "\" p\" is none of dp, pp and tp"),
        ];
        for (text, reason) in cases {
            let error = read(text).unwrap_err();
            assert!(error.contains("no layout such as tp4") && error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn crowds_are_read() {
        let crowd = Crowd { requests: 512, input_len: 1024, output_len: 256 };
        assert_eq!(parse_crowd("512x1k+256"), Ok(crowd));
        for wrong in ["", "512", "512x1024", "0x1+1", "512x1024+0", "x1+1", "1024+256"] {
            assert!(parse_crowd(wrong).unwrap_err().contains("512x1024+256"), "{wrong}");
        }
    }

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for (text, address) in [("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1")] {
            assert_eq!(parse_host(text).map(|host| host.to_string()), Ok(address.to_owned()));
        }
        for wrong in ["", "example.org", "127.0.0.1:80", "http://127.0.0.1"] {
            assert!(parse_host(wrong).is_err_and(|error| error.contains("0.0.0.0")), "{wrong}");
        }
    }

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
