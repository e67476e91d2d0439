//! Masking (RFC 6455 5.3): XOR with a key of four bytes, the same in both directions.

/// Masks or unmasks `data`. `offset` is the position of `data[0]` in the payload of its frame, so a payload
/// that arrives in pieces is unmasked piece by piece.
///
/// ```
/// use sockring::protocol::ws::mask;
///
/// let mut data = *b"hello";
/// mask::apply(&mut data, [1, 2, 3, 4], 0);
/// assert_eq!(&data[..2], &[b'h' ^ 1, b'e' ^ 2]);
/// mask::apply(&mut data[..3], [1, 2, 3, 4], 0);
/// mask::apply(&mut data[3..], [1, 2, 3, 4], 3);
/// assert_eq!(&data, b"hello");
/// ```
#[inline]
pub fn apply(data: &mut [u8], key: [u8; 4], offset: usize) {
    // Turned without a branch: choosing the bytes by a `match` cost as much as unmasking 100 of them.
    let turned = u32::from_le_bytes(key).rotate_right(8 * (offset % 4) as u32);
    let key = (u64::from(turned) << 32 | u64::from(turned)).to_le_bytes();
    let word = u64::from_ne_bytes(key);
    // Blocks of constant size without bounds checks inside: the compiler makes one or two vector XORs of
    // each.
    let (blocks, rest) = data.as_chunks_mut::<64>();
    for block in blocks {
        xor_words(block.as_chunks_mut::<8>().0, word);
    }
    let (words, rest) = rest.as_chunks_mut::<8>();
    xor_words(words, word);
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

#[inline]
fn xor_words(words: &mut [[u8; 8]], key: u64) {
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ key).to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_byte_wise_xor(
            data in prop::collection::vec(any::<u8>(), 0..300),
            key: [u8; 4],
            offset in 0usize..9,
            cut in 0usize..300,
        ) {
            let expected: Vec<u8> =
                data.iter().enumerate().map(|(at, byte)| byte ^ key[(at + offset) % 4]).collect();
            let mut pieces = data.clone();
            let cut = cut.min(data.len());
            let (first, second) = pieces.split_at_mut(cut);
            apply(first, key, offset);
            apply(second, key, offset + cut);
            prop_assert_eq!(&pieces, &expected);
            apply(&mut pieces, key, offset);
            prop_assert_eq!(pieces, data);
        }
    }
}
