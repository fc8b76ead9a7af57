// Reads a bundle endpoint by profile https_spiffe with go-spiffe, as another mesh would, and says what it found:
//
//	spiffe-bundle TRUST-DOMAIN URL ENDPOINT-ID ROOTS.pem
//
// A line with sequence and refresh hint in seconds, then the roots, PEM.
package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: spiffe-bundle TRUST-DOMAIN URL ENDPOINT-ID ROOTS.pem")
	}
	domain := spiffeid.RequireTrustDomainFromString(os.Args[1])
	roots, err := x509bundle.Load(domain, os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	auth := federation.WithSPIFFEAuth(roots, spiffeid.RequireFromString(os.Args[3]))
	bundle, err := federation.FetchBundle(ctx, domain, os.Args[2], auth)
	if err != nil {
		log.Fatal(err)
	}
	sequence, _ := bundle.SequenceNumber()
	hint, _ := bundle.RefreshHint()
	fmt.Printf("%d %d\n", sequence, int(hint.Seconds()))
	for _, root := range bundle.X509Authorities() {
		_ = pem.Encode(os.Stdout, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	}
}
