package dev

import (
	"encoding/json"
	"net/http"
)

// callBack publishes what came of an attempt to where the publisher wants it; nil is nowhere. The caller holds q.mu.
func (q *QStash) callBack(m *message, a *Attempt, to *publication) {
	if to == nil {
		return
	}
	header := a.Header
	if header == nil { // there was no answer
		header = http.Header{}
	}
	body, err := json.Marshal(struct {
		Status          int         `json:"status"`
		Header          http.Header `json:"header"`
		Body            []byte      `json:"body,omitempty"`
		Retried         int         `json:"retried,omitempty"`
		MaxRetries      int         `json:"maxRetries"`
		SourceMessageID string      `json:"sourceMessageId"`
		DLQID           string      `json:"dlqId,omitempty"`
		URL             string      `json:"url"`
		Method          string      `json:"method"`
		SourceHeader    http.Header `json:"sourceHeader"`
		SourceBody      []byte      `json:"sourceBody,omitempty"`
		NotBefore       int64       `json:"notBefore"`
		CreatedAt       int64       `json:"createdAt"`
		CallerIP        string      `json:"callerIP"`
	}{
		Status:          a.Status,
		Header:          header,
		Body:            a.Body,
		Retried:         a.Retried,
		MaxRetries:      m.retries,
		SourceMessageID: m.ID,
		DLQID:           m.dlqID,
		URL:             m.destination,
		Method:          m.method,
		SourceHeader:    m.header,
		SourceBody:      m.body,
		NotBefore:       m.notBefore.UnixMilli(),
		CreatedAt:       m.created.UnixMilli(),
		CallerIP:        m.callerIP,
	})
	if err != nil { // a struct of texts, bytes and numbers cannot fail
		return
	}
	p := *to
	p.body, p.callerIP = body, m.callerIP
	q.hold(&p, m.ID)
}
