use aws_lc_rs::hmac;

pub fn verify(body: &[u8], header: &str, secret: &str, now_seconds: u64) -> Result<(), &'static str> {
    let items = || header.split(',').filter_map(|item| item.split_once('='));
    let time = items().find(|(name, _)| *name == "t").map_or("", |(_, value)| value);
    let seconds: u64 = time.parse().map_err(|_| "the delivery has no time")?;
    if now_seconds.abs_diff(seconds) > 300 {
        return Err("the delivery is more than five minutes off");
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = [time.as_bytes(), b".", body].concat();
    let signatures = items().filter(|(name, _)| *name == "v1").filter_map(|(_, value)| bytes(value));
    // Compares in constant time.
    if signatures.into_iter().any(|signature| hmac::verify(&key, &signed, &signature).is_ok()) {
        return Ok(());
    }
    Err("the delivery is not signed under this secret")
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|digit| digit.to_digit(16)?.try_into().ok()).collect();
    Some(digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}
