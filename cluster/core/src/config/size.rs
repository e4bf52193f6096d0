//! Sizes of Machines: flyctl's presets, and how it reads an amount of memory or storage.
//!
//! Source: `MachinePresets` of `superfly/fly-go`; `ParseSize` of flyctl with `RAMInBytes` and
//! `FromHumanSize` of `docker/go-units`.

/// What a preset stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    pub(super) cpu_kind: &'static str,
    pub(super) cpus: u32,
    /// Mebibytes.
    pub(super) memory_mb: u32,
    pub(super) gpu_kind: Option<&'static str>,
}

const SHARED: &str = "shared";
const PERFORMANCE: &str = "performance";

#[rustfmt::skip]
const TABLE: [(&str, &str, u32, Option<&str>); 18] = [
    ("shared-cpu-1x",   SHARED,      1,  None),
    ("shared-cpu-2x",   SHARED,      2,  None),
    ("shared-cpu-4x",   SHARED,      4,  None),
    ("shared-cpu-6x",   SHARED,      6,  None),
    ("shared-cpu-8x",   SHARED,      8,  None),
    ("performance-1x",  PERFORMANCE, 1,  None),
    ("performance-2x",  PERFORMANCE, 2,  None),
    ("performance-4x",  PERFORMANCE, 4,  None),
    ("performance-6x",  PERFORMANCE, 6,  None),
    ("performance-8x",  PERFORMANCE, 8,  None),
    ("performance-10x", PERFORMANCE, 10, None),
    ("performance-12x", PERFORMANCE, 12, None),
    ("performance-14x", PERFORMANCE, 14, None),
    ("performance-16x", PERFORMANCE, 16, None),
    ("a100-40gb",       PERFORMANCE, 8,  Some("a100-pcie-40gb")),
    ("a100-80gb",       PERFORMANCE, 8,  Some("a100-sxm4-80gb")),
    ("l40s",            PERFORMANCE, 8,  Some("l40s")),
    ("a10",             PERFORMANCE, 8,  Some("a10")),
];

/// All presets.
pub(super) fn presets() -> impl Iterator<Item = Preset> {
    TABLE.iter().map(|&(name, cpu_kind, cpus, gpu_kind)| {
        let per_cpu = match (cpu_kind, gpu_kind) {
            (SHARED, _) => 256,
            (_, None) => 2048,
            (_, Some(_)) => 4096,
        };
        Preset { name, cpu_kind, cpus, memory_mb: cpus * per_cpu, gpu_kind }
    })
}

/// The preset of that name.
pub(super) fn preset(name: &str) -> Option<Preset> {
    presets().find(|preset| preset.name == name)
}

/// An amount in units of `kilo` to the power of `unit` bytes, as `ParseSize` of flyctl reads it: a whole
/// number counts these, other texts say their own unit.
pub(super) fn amount(text: &str, kilo: u32, unit: i32) -> Option<f64> {
    match text.parse::<u32>() {
        Ok(number) => Some(f64::from(number)),
        Err(_) => Some(bytes(text, kilo)? / f64::from(kilo).powi(unit)),
    }
}

/// Bytes of a text such as `512mb`, `1.5 GiB` or `7b`, a kilobyte having `kilo` of them.
fn bytes(text: &str, kilo: u32) -> Option<f64> {
    let (number, unit) = match text.split_once(' ') {
        Some(parts) => parts,
        None => text.split_at(text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1),
    };
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    (number >= 0.0 && number.is_finite()).then(|| number * f64::from(kilo).powi(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_flyctl_reads_them() {
        let mebibyte = f64::from(1 << 20);
        for (text, means) in [
            ("512mb", Some(512.0 * mebibyte)),
            ("512 MB", Some(512.0 * mebibyte)),
            ("512MiB", Some(512.0 * mebibyte)),
            ("1g", Some(1024.0 * mebibyte)),
            ("1.5GB", Some(1536.0 * mebibyte)),
            ("2048k", Some(2.0 * mebibyte)),
            ("1t", Some(mebibyte * mebibyte)),
            ("7", Some(7.0)),
            ("7b", Some(7.0)),
            (".5k", Some(512.0)),
            ("7ib", None),
            ("1mi", None),
            ("1mbb", None),
            ("1bm", None),
            ("-1g", None),
            ("1e3k", Some(mebibyte * 1000.0 / 1024.0)),
            ("inf g", None),
            ("gb", None),
            ("1  g", None),
            ("", None),
            (" ", None),
            ("1é", None),
        ] {
            assert_eq!(bytes(text, 1024), means, "{text:?}");
        }
        assert_eq!(amount("15Mb", 1000, 3), Some(0.015));
        assert_eq!((amount("512", 1024, 2), amount("1gb", 1024, 2)), (Some(512.0), Some(1024.0)));
    }

    #[test]
    fn a_preset_has_a_share_of_memory_for_each_core() {
        let of = |name: &str| preset(name).map(|p| (p.cpu_kind, p.cpus, p.memory_mb, p.gpu_kind));
        assert_eq!(of("shared-cpu-8x"), Some(("shared", 8, 2048, None)));
        assert_eq!(of("performance-16x"), Some(("performance", 16, 32_768, None)));
        assert_eq!(of("a100-40gb"), Some(("performance", 8, 32_768, Some("a100-pcie-40gb"))));
        assert_eq!(of("shared-cpu-3x"), None);
    }
}
