const usage = await karta.usage.summary();      // period totals + budget
const billing = await karta.billing.status();   // subscription state
