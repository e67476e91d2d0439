//! Polling through script elements, for browsers that know no other way across origins (engine.io `JSONP`).
//! Pure.

use std::borrow::Cow;

use crate::protocol::query;

/// Digits of a call's number. The client counts its calls; more than these are no count.
const DIGITS_MAX: usize = 10;

/// The number of a session's calls, out of the `j` of its handshake: its digits.
pub(super) fn index(j: &str) -> Box<str> {
    j.chars().filter(char::is_ascii_digit).take(DIGITS_MAX).collect()
}

/// A payload as the argument of a call. JSON that is a script must not have the line ends U+2028 and U+2029.
pub(super) fn call(index: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 32);
    out.extend_from_slice(b"___eio[");
    out.extend_from_slice(index.as_bytes());
    out.extend_from_slice(b"](");
    // Writing a string to a vector cannot fail.
    let _ = serde_json::to_writer(JavaScript(&mut out), &String::from_utf8_lossy(payload));
    out.extend_from_slice(b");");
    out
}

/// Writes JSON, and escapes what JavaScript takes for a line end.
struct JavaScript<'a>(&'a mut Vec<u8>);

impl std::io::Write for JavaScript<'_> {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let mut rest = text;
        while let Some(at) = memmem(rest) {
            let escape: &[u8] = if rest[at + 2] == 0xA8 { b"\\u2028" } else { b"\\u2029" };
            self.0.extend_from_slice(&rest[..at]);
            self.0.extend_from_slice(escape);
            rest = &rest[at + 3..];
        }
        self.0.extend_from_slice(rest);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where U+2028 or U+2029 stands. `serde_json` writes whole pieces of a string, so none is cut in two.
fn memmem(text: &[u8]) -> Option<usize> {
    text.windows(3).position(|three| matches!(three, [0xE2, 0x80, 0xA8 | 0xA9]))
}

/// The payload in the body of a POST, which is a form with the field `d`. `None`: there is no such field.
///
/// A form turns line ends into CRLF, so the client escapes them: `\n` stands for one, and `\\n` for what was
/// `\n` itself.
pub(super) fn payload(body: &str) -> Option<String> {
    let form: Cow<'_, str> = query::find(body, "d")?;
    let mut out = String::with_capacity(form.len());
    let mut rest = &*form;
    while let Some(at) = rest.find("\\n") {
        let (before, after) = rest.split_at(at);
        match before.strip_suffix('\\') {
            Some(before) => {
                out.push_str(before);
                out.push_str("\\n");
            }
            None => {
                out.push_str(before);
                out.push('\n');
            }
        }
        rest = &after[2..];
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn calls_are_scripts() {
        assert_eq!(call(&index("12);alert("), b"4\"a\"\n"), br#"___eio[12]("4\"a\"\n");"#);
        assert_eq!(call("", "\u{2028}x\u{2029}".as_bytes()), br#"___eio[]("\u2028x\u2029");"#);
        assert_eq!(index(&"7".repeat(99)).len(), DIGITS_MAX);
    }

    #[test]
    fn forms_are_payloads() {
        assert_eq!(payload("d=4hello+%22you%22").as_deref(), Some("4hello \"you\""));
        assert_eq!(payload("d=4a%5Cnb%5C%5Cnc").as_deref(), Some("4a\nb\\nc"));
        assert_eq!(payload("x=4"), None);
        assert_eq!(payload("d=").as_deref(), Some(""));
    }

    proptest! {
        /// What a client escapes comes back.
        #[test]
        fn line_ends_survive(text in "[\\\\n\na]{0,12}") {
            // A backslash before a line end is what the escape cannot tell apart, in the reference either.
            prop_assume!(!text.contains("\\\n") && !text.contains("\\\\n"));
            let escaped = text.replace("\\n", "\\\\n").replace('\n', "\\n");
            let encode = percent_encoding::utf8_percent_encode(&escaped, percent_encoding::NON_ALPHANUMERIC);
            prop_assert_eq!(payload(&format!("d={encode}")), Some(text));
        }

        #[test]
        fn a_call_is_json_and_ascii_safe(text in ".{0,30}") {
            let out = String::from_utf8(call("0", text.as_bytes())).unwrap();
            let json = out.strip_prefix("___eio[0](").unwrap().strip_suffix(");").unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(json).unwrap(), text);
            prop_assert!(!out.contains(['\u{2028}', '\u{2029}']), "a line end");
        }
    }
}
