//! Amounts as people read them.

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1536` as `1.5 KiB`.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{n} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Seconds as `45s`, `12m`, `3h 20m`, `2d 4h`.
pub fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m"),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!(
            (grouped(7), grouped(1_234_567)),
            ("7".into(), "1,234,567".into())
        );
        let three = [12, 1536, 5 << 40].map(bytes);
        assert_eq!(three, ["12 B", "1.5 KiB", "5.0 TiB"]);
        let spans = [0, 59, 60, 3599, 3600, 12_000, 86_400, 187_200].map(span);
        let wanted = [
            "0s", "59s", "1m", "59m", "1h 0m", "3h 20m", "1d 0h", "2d 4h",
        ];
        assert_eq!(spans, wanted);
    }
}
