package main

import (
	"context"

	"qstash-receiver/internal/qstash"
)

// This is the one file to edit. Each message that QStash delivers comes to handle, proven to be from QStash; what
// QStash does next follows from what is returned:
//
//	return reply, nil                    200 with the reply    done; the reply goes to the message's callback URL
//	return nil, nil                      200                   done
//	return nil, err                      500                   QStash retries with backoff (504 once ctx has ended)
//	return nil, qstash.RetryAfter(d, e)  503, Retry-After: d   QStash tries again then, a second to a day from now
//	return nil, qstash.Permanent(err)    489                   no retries: dead letter queue, failure callback
//
// A panic is an error. ctx ends after HANDLER_TIMEOUT, not when the caller hangs up. The error's text is what you
// read in QStash's console. qstash.Log(ctx) logs with the message's id.

// handle is the business logic. The reply is sent as JSON if it is that, else as text; it must not be changed after
// the return.
func handle(ctx context.Context, m *qstash.Message) ([]byte, error) {
	// As shipped, this only logs: your code goes here.
	qstash.Log(ctx).Info("message", "path", m.URL.Path, "attempt", m.Unverified.Attempt, "body", qstash.Excerpt(m.Body))
	return nil, nil
}

// handleFailure learns of a message that QStash gave up on, if it was published with this service's /failure as
// Upstash-Failure-Callback.
func handleFailure(ctx context.Context, f *qstash.Callback) error {
	qstash.Log(ctx).Error("message failed for good", "failed_message", f.MessageID, "url", f.URL, "status", f.Status,
		"retries", f.Retried, "dlq_id", f.DLQID, "answer", qstash.Excerpt(f.Body), "body", qstash.Excerpt(f.SourceBody), "left_out", f.LeftOut)
	return nil
}
