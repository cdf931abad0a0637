import { Karta } from "@karta/sdk";

const karta = new Karta({
  apiKey: process.env.KARTA_API_KEY!,        // kt_live_… bearer token (required)
  baseUrl: "https://api.karta.sh",          // optional
});
