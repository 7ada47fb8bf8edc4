//! Sealing and opening of bytes: AES-256-CTR with Poly1305-AES, exactly as restic does it.

use aes::Aes128;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockEncrypt as _, KeyInit as _};
use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, rand};
use poly1305::Poly1305;

use crate::error::{Error, Result};

/// Bytes of the nonce before the ciphertext.
pub const NONCE_BYTES: usize = 16;
/// Bytes of the authentication tag after it.
pub const TAG_BYTES: usize = 16;
/// What sealing adds, bytes.
pub const OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;
/// The same, for lengths in packs.
pub const OVERHEAD: u32 = 32;

/// Says only that the bytes are not what was sealed with this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its authentication tag does not fit its content")]
pub struct NotAuthentic;

/// A repository's key for its content.
pub struct Key {
    cipher: EncryptingKey,
    tag_cipher: Aes128,
    tag_r: [u8; 16],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// From the three parts of a master key: 32 bytes for the cipher, 16 and 16 for the tag.
    ///
    /// # Errors
    /// When a part has another length.
    pub fn new(encrypt: &[u8], mac_k: &[u8], mac_r: &[u8]) -> Result<Self> {
        let wrong = |_| Error::damaged("key", "of the repository", "a part of it has a wrong length");
        let cipher = UnboundCipherKey::new(&AES_256, encrypt).and_then(EncryptingKey::ctr).map_err(wrong)?;
        let tag_cipher = Aes128::new_from_slice(mac_k).map_err(|_| wrong(aws_lc_rs::error::Unspecified))?;
        let tag_r = mac_r.try_into().map_err(|_| wrong(aws_lc_rs::error::Unspecified))?;
        Ok(Self { cipher, tag_cipher, tag_r })
    }

    /// Seals what follows the first 16 bytes of `buffer`: fills those with a fresh nonce, encrypts in place, adds the tag.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal_in_place(&self, buffer: &mut Vec<u8>) -> Result<()> {
        let failed = |_| Error::internal("encrypt", "the cryptographic library refused");
        let mut nonce = [0; NONCE_BYTES];
        rand::fill(&mut nonce).map_err(failed)?;
        let (head, body) = buffer.split_at_mut_checked(NONCE_BYTES).ok_or_else(|| failed(aws_lc_rs::error::Unspecified))?;
        head.copy_from_slice(&nonce);
        self.apply_stream(&nonce, body).map_err(failed)?;
        let tag = self.tag(&nonce, body);
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    /// Seals a copy of the bytes.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(plain.len().saturating_add(OVERHEAD_BYTES));
        buffer.resize(NONCE_BYTES, 0);
        buffer.extend_from_slice(plain);
        self.seal_in_place(&mut buffer)?;
        Ok(buffer)
    }

    /// Checks and decrypts in place; returns the part of the buffer that is plain text.
    ///
    /// # Errors
    /// When the bytes were changed, or sealed with another key.
    pub fn open<'a>(&self, sealed: &'a mut [u8]) -> std::result::Result<&'a mut [u8], NotAuthentic> {
        let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_BYTES>().ok_or(NotAuthentic)?;
        let (body, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(NotAuthentic)?;
        constant_time::verify_slices_are_equal(&self.tag(nonce, body), tag).map_err(|_| NotAuthentic)?;
        self.apply_stream(nonce, body).map_err(|_| NotAuthentic)?;
        Ok(body)
    }

    /// Counter mode is its own inverse.
    fn apply_stream(&self, nonce: &[u8; NONCE_BYTES], body: &mut [u8]) -> std::result::Result<(), aws_lc_rs::error::Unspecified> {
        self.cipher.less_safe_encrypt(body, EncryptionContext::Iv128(FixedLength::from(nonce))).map(drop)
    }

    fn tag(&self, nonce: &[u8; NONCE_BYTES], body: &[u8]) -> [u8; TAG_BYTES] {
        let mut one_time = [0; 32];
        let (r, s) = one_time.split_at_mut(16);
        r.copy_from_slice(&self.tag_r);
        let mut block = GenericArray::clone_from_slice(nonce);
        self.tag_cipher.encrypt_block(&mut block);
        s.copy_from_slice(&block);
        <Poly1305 as poly1305::universal_hash::KeyInit>::new(&one_time.into()).compute_unpadded(body).into()
    }
}

#[cfg(test)]
mod tests {
    use aes256ctr_poly1305aes::aead::Aead as _;
    use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Nonce};
    use proptest::prelude::*;

    use super::*;

    fn both(raw: &[u8; 64]) -> (Key, Aes256CtrPoly1305Aes) {
        (Key::new(&raw[..32], &raw[32..48], &raw[48..]).unwrap(), Aes256CtrPoly1305Aes::new(raw.into()))
    }

    proptest! {
        #[test]
        fn what_we_seal_the_reference_opens_and_the_other_way_round(raw in prop::array::uniform32(any::<u8>()), more in prop::array::uniform32(any::<u8>()), nonce in any::<[u8; 16]>(), plain in prop::collection::vec(any::<u8>(), 0..5000)) {
            let raw: [u8; 64] = [raw, more].concat().try_into().unwrap();
            let (ours, reference) = both(&raw);
            let sealed = ours.seal(&plain).unwrap();
            prop_assert_eq!(sealed.len(), plain.len() + OVERHEAD_BYTES);
            prop_assert_eq!(&reference.decrypt(Nonce::from_slice(&sealed[..16]), &sealed[16..]).unwrap(), &plain);
            let mut theirs = nonce.to_vec();
            theirs.extend(reference.encrypt(Nonce::from_slice(&nonce), plain.as_slice()).unwrap());
            prop_assert_eq!(ours.open(&mut theirs).unwrap(), plain.as_slice());
        }

        #[test]
        fn any_flipped_bit_is_seen(plain in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let (key, _) = both(&[7; 64]);
            let mut sealed = key.seal(&plain).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(key.open(&mut sealed), Err(NotAuthentic));
        }
    }

    #[test]
    fn too_short_is_not_authentic() {
        let (key, _) = both(&[1; 64]);
        for length in 0..OVERHEAD_BYTES {
            assert_eq!(key.open(&mut vec![0; length]), Err(NotAuthentic));
        }
    }
}
