//! Range requests (RFC 9110 section 14).

use std::ops::Range;

use smallvec::SmallVec;

/// Ranges of one request; more of them, and the header is ignored: nobody needs them, and each costs an
/// answer the head of a part.
const RANGES_MAX: usize = 16;

/// What a `Range` header asks of a representation.
///
/// ```
/// use sockring::protocol::http::Ranges;
/// let parse = |header| Ranges::parse(header, 1000);
/// assert_eq!(parse("bytes=0-99,-100"), Ranges::Some([0..100, 900..1000].into_iter().collect()));
/// assert_eq!(parse("bytes=1000-"), Ranges::Unsatisfiable);
/// assert_eq!(parse("lines=1-2"), Ranges::All);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// The header is to be ignored: another unit, malformed, or more work than sending all of it. Answered
    /// with 200.
    All,
    /// These bytes, in the order asked for. Answered with 206.
    Some(SmallVec<[Range<u64>; 1]>),
    /// No range lies within the representation. Answered with 416.
    Unsatisfiable,
}

impl Ranges {
    /// Reads a `Range` header for a representation of `length` bytes.
    #[must_use]
    pub fn parse(header: &str, length: u64) -> Self {
        let Some((unit, set)) = header.split_once('=') else { return Self::All };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::All;
        }
        let mut ranges = SmallVec::new();
        for (number, spec) in set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).enumerate() {
            if number == RANGES_MAX {
                return Self::All;
            }
            match parse_one(spec, length) {
                Ok(Some(range)) => ranges.push(range),
                Ok(None) => {}
                Err(Malformed) => return Self::All,
            }
        }
        let asked: u64 =
            ranges.iter().map(|range: &Range<u64>| range.end - range.start).fold(0, u64::saturating_add);
        if ranges.is_empty() {
            Self::Unsatisfiable
        } else if asked > length {
            // They overlap: a small request must not cost more than the whole.
            Self::All
        } else {
            Self::Some(ranges)
        }
    }
}

struct Malformed;

/// One of `first-last`, `first-` and `-suffix`; `None` if it lies outside.
fn parse_one(spec: &str, length: u64) -> Result<Option<Range<u64>>, Malformed> {
    let (first, last) = spec.split_once('-').ok_or(Malformed)?;
    let range = match (number(first)?, number(last)?) {
        (Some(first), Some(last)) if first > last => return Err(Malformed),
        (Some(first), last) => first..last.map_or(length, |last| last.saturating_add(1).min(length)),
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
        (None, None) => return Err(Malformed),
    };
    Ok((range.start < range.end).then_some(range))
}

/// A decimal number, as large as it may be; `None` for an empty text.
fn number(text: &str) -> Result<Option<u64>, Malformed> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed);
    }
    Ok((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some(ranges: &[(u64, u64)]) -> Ranges {
        Ranges::Some(ranges.iter().map(|(start, end)| *start..*end).collect())
    }

    #[test]
    fn the_examples_of_rfc_9110() {
        for (header, expected) in [
            ("bytes=0-499", some(&[(0, 500)])),
            ("bytes=500-999", some(&[(500, 1000)])),
            ("bytes=-500", some(&[(9500, 10000)])),
            ("bytes=9500-", some(&[(9500, 10000)])),
            ("bytes=0-0,-1", some(&[(0, 1), (9999, 10000)])),
            ("bytes= 0-999, 4500-5499, -1000", some(&[(0, 1000), (4500, 5500), (9000, 10000)])),
            ("bytes=500-600,601-999", some(&[(500, 601), (601, 1000)])),
            ("bytes=500-700,601-999", some(&[(500, 701), (601, 1000)])),
        ] {
            assert_eq!(Ranges::parse(header, 10000), expected, "{header}");
        }
    }

    #[test]
    fn what_is_ignored_or_cannot_be() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-4",
            "bytes=1-2,",
            "bytes=+1-2",
            "bytes=0x1-2",
            "items=0-5",
            "bytes=0-99,0-99",
            "bytes=1-2-3",
            "bytes=--1",
        ] {
            assert_eq!(Ranges::parse(header, 100), Ranges::All, "{header}");
        }
        let many = format!("bytes={}", vec!["1-1"; RANGES_MAX + 1].join(","));
        assert_eq!(Ranges::parse(&many, 1000), Ranges::All);
        for header in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(Ranges::parse(header, 100), Ranges::Unsatisfiable, "{header}");
        }
        assert_eq!(Ranges::parse("bytes=0-", 0), Ranges::Unsatisfiable);
        assert_eq!(Ranges::parse("bytes=0-99999999999999999999999", 100), some(&[(0, 100)]));
        assert_eq!(Ranges::parse("bytes=-99999999999999999999999", 100), some(&[(0, 100)]));
        assert_eq!(Ranges::parse("bytes=200-, 1-1", 100), some(&[(1, 2)]));
    }

    proptest! {
        #[test]
        fn ranges_lie_within(header in "(bytes=)?[-0-9, ]{0,40}", length in 0u64..100) {
            if let Ranges::Some(ranges) = Ranges::parse(&header, length) {
                prop_assert!(!ranges.is_empty());
                prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length));
                prop_assert!(ranges.iter().map(|range| range.end - range.start).sum::<u64>() <= length);
            }
        }
    }
}
