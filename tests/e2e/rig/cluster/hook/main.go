// For the rig's self-test: a mutating webhook that adds an annotation and a native sidecar, and an aggregated API with one resource.
package main

import (
	"encoding/json"
	"log"
	"net/http"
)

type object = map[string]any

type review struct {
	Request struct {
		UID    string
		Object struct {
			Metadata struct{ Annotations map[string]string }
			Spec     struct{ InitContainers []any }
		}
	}
}

func sidecar() object {
	return object{
		"name": "sidecar", "image": "localhost/tools:1", "imagePullPolicy": "Never", "restartPolicy": "Always",
		"command":      []string{"/bin/sh", "-c", "trap 'exit 0' TERM; touch /tmp/up; while :; do sleep 0.2; done"},
		"startupProbe": object{"exec": object{"command": []string{"test", "-f", "/tmp/up"}}, "periodSeconds": 1},
	}
}

// patch says what is missing: nothing, when the API server asks a second time about its own answer (reinvocationPolicy IfNeeded).
func patch(asked *review) []object {
	pod := asked.Request.Object
	if pod.Metadata.Annotations["rig/injected"] == "yes" {
		return nil
	}
	changes := []object{}
	if pod.Metadata.Annotations == nil {
		changes = append(changes, object{"op": "add", "path": "/metadata/annotations", "value": object{}})
	}
	changes = append(changes, object{"op": "add", "path": "/metadata/annotations/rig~1injected", "value": "yes"})
	if len(pod.Spec.InitContainers) == 0 {
		changes = append(changes, object{"op": "add", "path": "/spec/initContainers", "value": []any{}})
	}
	return append(changes, object{"op": "add", "path": "/spec/initContainers/0", "value": sidecar()})
}

func mutate(w http.ResponseWriter, r *http.Request) {
	var asked review
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := object{"uid": asked.Request.UID, "allowed": true}
	if changes := patch(&asked); changes != nil {
		encoded, _ := json.Marshal(changes)
		answer["patchType"], answer["patch"] = "JSONPatch", encoded
	}
	write(w, object{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer})
}

// The resource's name says as whom the API server calls.
func resources(w http.ResponseWriter, r *http.Request) {
	thing := object{"name": "things-by-" + r.Header.Get("X-Remote-User"), "kind": "Thing", "namespaced": false, "verbs": []string{"list"}}
	write(w, object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "rig.example.org/v1", "resources": []any{thing}})
}

func write(w http.ResponseWriter, value object) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Print(err)
	}
}

func main() {
	http.HandleFunc("/mutate", mutate)
	http.HandleFunc("/apis/rig.example.org/v1", resources)
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	log.Fatal(http.ListenAndServeTLS(":8443", "/certs/tls.crt", "/certs/tls.key", nil))
}
