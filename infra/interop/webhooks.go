// Runs the Go sample of docs/webhooks.md on deliveries that Karta signed. Reads the deliveries from
// stdin; exits with 1 at the first failed check.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"karta/webhooks"
)

func main() {
	var cases []struct {
		What      string
		IsGenuine bool `json:"is_genuine"`
		Secret    string
		Body      string
		Headers   map[string]string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, delivery := range cases {
		err := webhooks.Verify([]byte(delivery.Body), delivery.Headers["karta-signature"], delivery.Secret)
		if (err == nil) != delivery.IsGenuine {
			fmt.Fprintf(os.Stderr, "%s: %v\n", delivery.What, err)
			os.Exit(1)
		}
	}
	fmt.Printf("webhooks: Go %s: %d checks\n", runtime.Version()[2:], len(cases))
}
