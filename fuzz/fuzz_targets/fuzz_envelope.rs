//! Envelopes from any bytes: what decodes encodes to the same bytes, and its addresses are sound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpost::envelope::Envelope;

fuzz_target!(|input: &[u8]| {
    let Ok(envelope) = Envelope::decode(input) else { return };
    let mut bytes = Vec::new();
    envelope.encode(&mut bytes);
    assert_eq!(bytes, input);
    for address in envelope.reverse_path.iter().chain(envelope.recipients.iter().map(|recipient| &recipient.address)) {
        assert!(address.as_str().len() <= 254 && !address.as_str().contains(char::is_control));
        assert!(address.routing_domain().expect("a checked domain").is_ascii());
    }
});
