#!/usr/bin/perl
# A plugin from PROTOCOL.md alone: no SDK, nothing but what comes with Perl. Its emulator is a file.
use strict;
use warnings;
use JSON::PP;

open(my $ckrun, '+<&=', $ENV{CKRUN_PLUGIN_SOCKET}) or die "no socket: $!";
binmode $ckrun;
$ckrun->autoflush(1);
$SIG{PIPE} = 'IGNORE';

my $json = JSON::PP->new->utf8->canonical;
my ($device, $state, $calls) = (undef, 0, 0);

sub say_line { print $ckrun $json->encode($_[0]), "\n" }

# A call: ckrun may send `cancel` before its answer, and nothing else that a plugin this simple must look at.
sub call {
    my ($method, $params) = @_;
    my $id = 'c' . ++$calls;
    say_line({ jsonrpc => '2.0', id => $id, method => $method, params => $params });
    while (my $line = <$ckrun>) {
        my $message = $json->decode($line);
        return $message if !$message->{method} && $message->{id} eq $id;
    }
    exit 0;
}

sub fail { my ($code, $message) = @_; die { code => $code, message => $message } }

sub claim {
    $device = "/tmp/ckrun-perl-emulator.$$";
    open(my $file, '>', $device) or fail(2, "make $device: $!");
    return { bindings => [{ kind => 'device', virtual => '/dev/emu0', real => $device }] };
}

sub release { unlink $device if defined $device; undef $device; return {} }

sub load {
    my ($params) = @_;
    open(my $file, '<', "$params->{folder}/state") or fail(3, "open the saved state: $!");
    local $/;
    my $text = <$file>;
    $text =~ /^cycle ([0-9]+) end\n\z/ or fail(3, 'the saved state is not whole');
    fail(3, 'the image needs another design') if $params->{requirements}{design} ne 'perl';
    return $1;
}

my %events = (
    hello => sub { { protocol => '1.0', version => 'plugin.pl 1', deadlines => { precheckpoint => 60 } } },
    init => \&claim,
    presuspend => sub { {} },
    precheckpoint => sub {
        my ($params) = @_;
        $state += 1;
        open(my $file, '>', "$params->{folder}/state") or fail(2, "save the state: $!");
        print $file "cycle $state end\n";
        close($file) or fail(2, "save the state: $!");
        my $answer = call('put', { key => 'cycle', value => $state });
        fail(-32603, $answer->{error}{message}) if $answer->{error};
        release();
        return { requirements => { design => 'perl' } };
    },
    committed => sub { {} },
    resume => sub { defined $device ? {} : claim() },
    check => sub { load($_[0]); {} },
    restart => sub { $state = load($_[0]); claim() },
    running => sub { {} },
    exit => \&release,
);

while (my $line = <$ckrun>) {
    my $message = $json->decode($line);
    next unless defined $message->{method} && defined $message->{id};
    my %answer = (jsonrpc => '2.0', id => $message->{id});
    if (my $event = $events{ $message->{method} }) {
        my $result = eval { $event->($message->{params}) };
        if (my $error = $@) {
            $answer{error} = ref $error ? $error : { code => -32603, message => "$error" };
        } else {
            $answer{result} = $result;
        }
    } else {
        $answer{error} = { code => -32601, message => "there is no event $message->{method}" };
    }
    say_line(\%answer);
    last if $message->{method} eq 'exit';
}
release();
